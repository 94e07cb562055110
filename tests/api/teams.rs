//! Teams: permissions of each role, changes of members, and remains after a removal.

use serde_json::{Value, json};
use tests::{Client, Driver, Platform, eventually, mailed};

/// Starts a platform. Returns it with a team's owner, who is no admin of it, and the team's id.
async fn team() -> (Platform, Client, String) {
    let platform = Platform::start(Driver::Fake, &[]).await;
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let id = teams["items"][0]["id"].as_str().unwrap().to_owned();
    (platform, owner, id)
}

async fn id(user: &Client) -> String {
    user.get("/v1/me").await.expect(200)["id"].as_str().unwrap().to_owned()
}

/// Waits until a request is answered with this status. A replica hears of a change within a second.
async fn becomes(status: u16, ask: impl AsyncFn() -> u16) {
    let what = format!("it is answered with {status}");
    eventually(&what, async || (ask().await == status).then_some(())).await;
}

#[tokio::test]
async fn role_change_in_database_overrides_older_tokens() {
    let (platform, owner, team) = team().await;
    let (member, user) = platform.member(&owner, &team, "member").await;
    let token = member.post("/v1/auth/token", &json!({})).await.expect(200);
    let token = platform.client_with(token["token"].as_str().unwrap()).in_team(&team);
    let member = member.in_team(&team);
    let capsule = member.create(&json!({})).await;
    let exec = format!("/v1/capsules/{capsule}/exec");
    token.post(&exec, &json!({ "cmd": "true" })).await.expect(200);
    let path = format!("/v1/teams/{team}/members/{user}");
    owner.patch(&path, &json!({ "role": "viewer" })).await.expect(204);
    for client in [&member, &token] {
        let ask = async || client.post(&exec, &json!({ "cmd": "true" })).await.status.as_u16();
        becomes(403, ask).await;
        client.get(&format!("/v1/capsules/{capsule}")).await.expect(200);
    }
    owner.delete(&path).await.expect(204);
    for client in [&member, &token] {
        becomes(404, async || client.get("/v1/capsules").await.status.as_u16()).await;
    }
    // Capsules that the member started belong to the team.
    owner.get(&format!("/v1/capsules/{capsule}")).await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn key_rights_follow_maker_role_and_end_with_membership() {
    let (platform, owner, team) = team().await;
    let (admin, user) = platform.member(&owner, &team, "admin").await;
    let admin = admin.in_team(&team);
    let wanted = json!({ "name": "k", "scopes": ["capsules:admin", "team:admin"] });
    let made = admin.post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    key.get("/v1/audit-logs").await.expect(200);
    // A key made by a key is bound to the same user.
    let child = key.post("/v1/api-keys", &json!({ "name": "c", "scopes": ["team:read"] })).await;
    let child = platform.client_with(child.expect(201)["key"].as_str().unwrap());
    child.get("/v1/api-keys").await.expect(200);
    let path = format!("/v1/teams/{team}/members/{user}");
    owner.patch(&path, &json!({ "role": "viewer" })).await.expect(204);
    becomes(403, async || key.get("/v1/audit-logs").await.status.as_u16()).await;
    key.post("/v1/capsules", &json!({})).await.refuses(403, "forbidden", "capsules:admin");
    key.get("/v1/capsules").await.expect(200);
    admin.post("/v1/api-keys", &json!({ "name": "x" })).await.refuses(
        403,
        "forbidden",
        "keys:make",
    );
    owner.patch(&path, &json!({ "role": "member" })).await.expect(204);
    becomes(201, async || {
        admin.post("/v1/api-keys", &json!({ "name": "x" })).await.status.as_u16()
    })
    .await;
    let more = json!({ "name": "x", "scopes": ["team:admin"] });
    admin.post("/v1/api-keys", &more).await.refuses(400, "invalid_request", "scopes");
    let operator = json!({ "name": "x", "operator": true });
    admin.post("/v1/api-keys", &operator).await.refuses(403, "forbidden", "platform");
    admin.post(&format!("/v1/teams/{team}/leave"), &json!({})).await.expect(204);
    for gone in [&key, &child] {
        becomes(401, async || gone.get("/v1/capsules").await.status.as_u16()).await;
    }
    let keys = owner.get("/v1/api-keys").await.expect(200);
    assert_eq!(keys["items"].as_array().unwrap().len(), 0);
    platform.finish();
}

#[tokio::test]
async fn operator_key_works_while_its_maker_is_admin() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let root = platform.user("root@example.com").await;
    let second = platform.user("second@example.com").await;
    let path = format!("/v1/admin/users/{}", id(&second).await);
    let operator = json!({ "name": "k", "operator": true });
    second.post("/v1/api-keys", &operator).await.refuses(403, "forbidden", "platform");
    root.patch(&path, &json!({ "admin": true })).await.expect(200);
    becomes(201, async || second.post("/v1/api-keys", &operator).await.status.as_u16()).await;
    let made = second.post("/v1/api-keys", &operator).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    key.get("/v1/admin/users").await.expect(200);
    let platforms = key.in_team(&format!("team-{}", "0".repeat(25)));
    platforms.get("/v1/audit-logs").await.expect(200);
    root.patch(&path, &json!({ "admin": false })).await.expect(200);
    becomes(403, async || key.get("/v1/admin/users").await.status.as_u16()).await;
    becomes(404, async || platforms.get("/v1/audit-logs").await.status.as_u16()).await;
    key.get("/v1/capsules").await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn admin_invites_admin_whom_only_owner_demotes() {
    let (platform, owner, team) = team().await;
    let (admin, _) = platform.member(&owner, &team, "admin").await;
    let admin = admin.in_team(&team);
    let email = "second@example.com";
    let second = platform.user(email).await;
    let invite = json!({ "email": email, "role": "admin" });
    admin.post(&format!("/v1/teams/{team}/invitations"), &invite).await.expect(201);
    let token = mailed(&platform, email, "wrenn team accept ").await;
    let accept = json!({ "token": token });
    let joined = second.post("/v1/invitations/accept", &accept).await.expect(200);
    assert_eq!(joined["role"], "admin");
    let path = format!("/v1/teams/{team}/members/{}", id(&second).await);
    let down = json!({ "role": "viewer" });
    admin.patch(&path, &down).await.refuses(403, "forbidden", "team:own");
    admin.delete(&path).await.refuses(403, "forbidden", "team:own");
    owner.patch(&path, &down).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn members_cannot_change_equal_or_higher_roles() {
    let (platform, owner, team) = team().await;
    let (admin, admins) = platform.member(&owner, &team, "admin").await;
    let (_, members) = platform.member(&owner, &team, "member").await;
    let admin = admin.in_team(&team);
    let owners = id(&owner).await;
    let path = |user: &str| format!("/v1/teams/{team}/members/{user}");
    for above in [&owners, &admins] {
        let down = json!({ "role": "viewer" });
        admin.patch(&path(above), &down).await.refuses(403, "forbidden", "team:own");
        admin.delete(&path(above)).await.refuses(403, "forbidden", "team:own");
    }
    let up = json!({ "role": "owner" });
    owner.patch(&path(&members), &up).await.refuses(400, "invalid_request", "role");
    admin.patch(&path(&members), &json!({ "role": "admin" })).await.expect(204);
    admin.delete(&format!("/v1/teams/{team}")).await.refuses(403, "forbidden", "team:own");
    let take = json!({ "user_id": admins });
    admin.post(&format!("/v1/teams/{team}/transfer"), &take).await.refuses(403, "forbidden", "");
    owner
        .post(&format!("/v1/teams/{team}/leave"), &json!({}))
        .await
        .refuses(409, "conflict", "transfer");
    platform.finish();
}

#[tokio::test]
async fn concurrent_team_transfers_leave_one_owner() {
    let (platform, owner, team) = team().await;
    let (one, first) = platform.member(&owner, &team, "member").await;
    let (two, second) = platform.member(&owner, &team, "viewer").await;
    let path = format!("/v1/teams/{team}/transfer");
    let give = |user: &str| json!({ "user_id": user });
    let (left, right) = (give(&first), give(&second));
    let (a, b) = tokio::join!(owner.post(&path, &left), owner.post(&path, &right));
    let done = [a.status.as_u16(), b.status.as_u16()].iter().filter(|s| **s == 204).count();
    assert_eq!(done, 1, "{} {}", a.body, b.body);
    let members = owner.get(&format!("/v1/teams/{team}/members")).await.expect(200);
    let owners = members["items"].as_array().unwrap().iter().filter(|m| m["role"] == "owner");
    assert_eq!(owners.count(), 1);
    let stranger = give("usr-0000000000000000000000001");
    let owner = if a.status == 204 { one } else { two };
    becomes(404, async || owner.post(&path, &stranger).await.status.as_u16()).await;
    platform.finish();
}

#[tokio::test]
async fn invitation_works_once_for_its_email_until_replaced() {
    let (platform, owner, team) = team().await;
    let path = format!("/v1/teams/{team}/invitations");
    let body = json!({ "email": "New@Example.com", "role": "member" });
    let made = owner.post(&path, &body).await.expect(201);
    assert_eq!(made["email"], "new@example.com");
    let first = mailed(&platform, "new@example.com", "wrenn team accept ").await;
    // A second invitation invalidates the first.
    owner.post(&path, &json!({ "email": "new@example.com", "role": "viewer" })).await.expect(201);
    let second = eventually("another mail", async || {
        let token = mailed(&platform, "new@example.com", "wrenn team accept ").await;
        (token != first).then_some(token)
    })
    .await;
    let accept = async |client: &Client, token: &str| {
        client.post("/v1/invitations/accept", &json!({ "token": token })).await
    };
    let thief = platform.user("thief@example.com").await;
    accept(&thief, &second).await.refuses(401, "invalid_token", "invitation");
    let user = platform.user("new@example.com").await;
    accept(&user, &first).await.refuses(401, "invalid_token", "invitation");
    assert_eq!(accept(&user, &second).await.expect(200)["role"], "viewer");
    accept(&user, &second).await.refuses(401, "invalid_token", "invitation");
    let listed = owner.get(&path).await.expect(200);
    assert_eq!(listed["items"], json!([]));
    // The owner withdraws an invitation.
    let made = owner.post(&path, &json!({ "email": "x@example.com", "role": "viewer" })).await;
    let id = made.expect(201)["id"].as_str().unwrap().to_owned();
    owner.delete(&format!("{path}/{id}")).await.expect(204);
    owner.delete(&format!("{path}/{id}")).await.refuses(404, "not_found", "invitation");
    owner.post(&path, &json!({ "email": "x@example.com", "role": "owner" })).await.refuses(
        400,
        "invalid_request",
        "role",
    );
    platform.finish();
}

#[tokio::test]
async fn empty_team_is_deleted_with_its_keys() {
    let (platform, owner, _) = team().await;
    let made = owner.post("/v1/teams", &json!({ "name": "Second" })).await.expect(201);
    let team = made["id"].as_str().unwrap();
    let there = owner.in_team(team);
    let id = there.create(&json!({})).await;
    let key = there.post("/v1/api-keys", &json!({ "name": "k" })).await.expect(201);
    let key = platform.client_with(key["key"].as_str().unwrap());
    let path = format!("/v1/teams/{team}");
    owner.delete(&path).await.refuses(409, "team_not_empty", "1 capsules");
    key.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    owner.delete(&path).await.expect(204);
    becomes(401, async || key.get("/v1/capsules").await.status.as_u16()).await;
    becomes(404, async || there.get("/v1/capsules").await.status.as_u16()).await;
    // The audit log keeps the team's deletion.
    let log = platform.client().get("/v1/admin/audit-logs?action=team.delete").await.expect(200);
    assert_eq!(log["items"][0]["resource_id"], team);
    platform.finish();
}

#[tokio::test]
async fn request_uses_named_team_or_default() {
    let (platform, owner, first) = team().await;
    let made = owner.post("/v1/teams", &json!({ "name": "Second" })).await.expect(201);
    let second = made["id"].as_str().unwrap();
    let id = owner.create(&json!({})).await;
    let seen = async |client: &Client| -> Vec<Value> {
        let list = client.get("/v1/capsules").await.expect(200);
        list["items"].as_array().unwrap().iter().map(|c| c["id"].clone()).collect()
    };
    assert_eq!(seen(&owner).await, [json!(id)]);
    assert_eq!(seen(&owner.in_team(second)).await, [] as [Value; 0]);
    owner.patch("/v1/me", &json!({ "default_team": second })).await.expect(200);
    eventually("the default is the second", async || seen(&owner).await.is_empty().then_some(()))
        .await;
    assert_eq!(seen(&owner.in_team(&first)).await, [json!(id)]);
    owner.in_team("nonsense").get("/v1/capsules").await.refuses(404, "not_found", "team");
    let platforms = format!("team-{}", "0".repeat(25));
    owner.in_team(&platforms).get("/v1/capsules").await.refuses(404, "not_found", "team");
    // An operator sees this team, but can neither add a member nor create a capsule in it.
    let operator = platform.client().in_team(&platforms);
    operator.get("/v1/audit-logs").await.expect(200);
    let invite = json!({ "email": "a@example.com", "role": "admin" });
    let path = format!("/v1/teams/{platforms}/invitations");
    operator.post(&path, &invite).await.refuses(409, "conflict", "members");
    operator.post("/v1/api-keys", &json!({ "name": "k" })).await.refuses(409, "conflict", "keys");
    operator.post("/v1/capsules", &json!({})).await.refuses(403, "forbidden", "capsules:admin");
    let join = json!({ "default_team": platforms });
    owner.patch("/v1/me", &join).await.refuses(404, "not_found", "team");
    platform.finish();
}

#[tokio::test]
async fn user_without_team_gets_no_team_error_and_creates_one() {
    let (platform, owner, team) = team().await;
    owner.delete(&format!("/v1/teams/{team}")).await.expect(204);
    becomes(403, async || owner.get("/v1/capsules").await.status.as_u16()).await;
    owner.get("/v1/capsules").await.refuses(403, "no_team", "not in any team");
    assert_eq!(owner.get("/v1/teams").await.expect(200)["items"], json!([]));
    owner.post("/v1/teams", &json!({ "name": "New" })).await.expect(201);
    becomes(200, async || owner.get("/v1/capsules").await.status.as_u16()).await;
    platform.finish();
}

#[tokio::test]
async fn platform_team_and_template_names_are_reserved() {
    let (platform, owner, _) = team().await;
    owner
        .post("/v1/teams", &json!({ "name": "PLATFORM" }))
        .await
        .refuses(409, "conflict", "platform");
    let id = owner.create(&json!({})).await;
    let body = json!({ "capsule_id": id, "name": "base" });
    owner.post("/v1/snapshots", &body).await.refuses(409, "conflict", "template");
    // Every team sees the platform team's templates.
    let templates = owner.get("/v1/templates").await.expect(200);
    assert_eq!(templates["items"][0]["shared"], true);
    platform.finish();
}

#[tokio::test]
async fn grants_made_by_removed_admin_end_with_membership() {
    let (platform, owner, team) = team().await;
    let (admin, admins) = platform.member(&owner, &team, "admin").await;
    let admin = admin.in_team(&team);
    let path = format!("/v1/teams/{team}/invitations");
    let invite = async |by: &Client, email: &str| {
        by.post(&path, &json!({ "email": email, "role": "admin" })).await.expect(201);
        mailed(&platform, email, "wrenn team accept ").await
    };
    let key = json!({ "name": "k", "scopes": ["team:admin"] });
    let made = admin.post("/v1/api-keys", &key).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let by_user = invite(&admin, "one@example.com").await;
    let by_key = invite(&key, "two@example.com").await;
    let by_owner = invite(&owner.in_team(&team), "three@example.com").await;
    let hook = |name: &str| json!({ "name": name, "url": "https://hooks.example.com/" });
    admin.post("/v1/channels", &hook("theirs")).await.expect(201);
    key.post("/v1/channels", &hook("keys")).await.expect(201);
    owner.in_team(&team).post("/v1/channels", &hook("owners")).await.expect(201);
    owner.delete(&format!("/v1/teams/{team}/members/{admins}")).await.expect(204);
    for (email, token, wanted) in [
        ("one@example.com", &by_user, 401),
        ("two@example.com", &by_key, 401),
        ("three@example.com", &by_owner, 200),
    ] {
        let user = platform.user(email).await;
        let answer = user.post("/v1/invitations/accept", &json!({ "token": token })).await;
        assert_eq!(answer.status.as_u16(), wanted, "{email}: {}", answer.body);
    }
    let owner = owner.in_team(&team);
    assert_eq!(owner.get(&path).await.expect(200)["items"], json!([]));
    let channels = owner.get("/v1/channels").await.expect(200);
    let enabled: Vec<_> = channels["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|channel| (channel["name"].as_str().unwrap(), channel["enabled"].clone()))
        .collect();
    let wanted = [("theirs", json!(false)), ("keys", json!(false)), ("owners", json!(true))];
    assert_eq!(enabled, wanted);
    let log = owner.get("/v1/audit-logs?action=member.remove").await.expect(200);
    let ended = json!({ "keys_revoked": 1, "invitations_deleted": 2, "channels_disabled": 2 });
    assert_eq!(log["items"][0]["metadata"]["ended"], ended);
    // A channel belongs to the team. An admin who enables it again becomes responsible for it.
    let id = channels["items"][0]["id"].as_str().unwrap();
    owner.patch(&format!("/v1/channels/{id}"), &json!({ "enabled": true })).await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn invitation_works_while_its_maker_may_invite() {
    let (platform, owner, team) = team().await;
    let root = platform.client();
    let (admin, admins) = platform.member(&owner, &team, "admin").await;
    let admin = admin.in_team(&team);
    let path = format!("/v1/teams/{team}/invitations");
    let guest = platform.user("guest@example.com").await;
    let invite = async |by: &Client| {
        by.post(&path, &json!({ "email": "guest@example.com", "role": "admin" })).await.expect(201);
    };
    let mut before = String::new();
    let mut token = async || {
        let token = eventually("a new mail", async || {
            let token = mailed(&platform, "guest@example.com", "wrenn team accept ").await;
            (token != before).then_some(token)
        })
        .await;
        before.clone_from(&token);
        json!({ "token": token })
    };
    let accept = "/v1/invitations/accept";
    // The maker is disabled, and may come back.
    invite(&admin).await;
    let first = token().await;
    let user = format!("/v1/admin/users/{admins}");
    root.patch(&user, &json!({ "status": "disabled" })).await.expect(200);
    guest.post(accept, &first).await.refuses(401, "invalid_token", "invitation");
    root.patch(&user, &json!({ "status": "active" })).await.expect(200);
    // The maker is no longer an admin.
    let member = format!("/v1/teams/{team}/members/{admins}");
    owner.patch(&member, &json!({ "role": "member" })).await.expect(204);
    guest.post(accept, &first).await.refuses(401, "invalid_token", "invitation");
    // The invitation was made by a child of a key that is revoked.
    let wanted = json!({ "name": "k", "scopes": ["team:admin"] });
    let made = owner.in_team(&team).post("/v1/api-keys", &wanted).await.expect(201);
    let key = platform.client_with(made["key"].as_str().unwrap());
    let child = key.post("/v1/api-keys", &wanted).await.expect(201);
    let child = platform.client_with(child["key"].as_str().unwrap());
    invite(&child).await;
    let second = token().await;
    let revoke = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    owner.in_team(&team).delete(&revoke).await.expect(204);
    guest.post(accept, &second).await.refuses(401, "invalid_token", "invitation");
    for gone in [&key, &child] {
        becomes(401, async || gone.get("/v1/api-keys").await.status.as_u16()).await;
    }
    invite(&owner).await;
    guest.post(accept, &token().await).await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn credentials_made_by_platform_admin_end_with_admin_right() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let root = platform.user("root@example.com").await;
    let second = platform.user("second@example.com").await;
    let path = format!("/v1/admin/users/{}", id(&second).await);
    root.patch(&path, &json!({ "admin": true })).await.expect(200);
    let host = async |by: &Client| {
        let made = by.post("/v1/hosts", &json!({})).await;
        (made.status.as_u16() == 201).then(|| made.body["registration_token"].clone())
    };
    let token = eventually("the second is an admin", async || host(&second).await).await;
    let operator = json!({ "name": "k", "operator": true, "scopes": ["team:admin"] });
    let key = second.post("/v1/api-keys", &operator).await.expect(201);
    let key = platform.client_with(key["key"].as_str().unwrap());
    let by_key = eventually("so is the key", async || host(&key).await).await;
    let invite = json!({ "email": "in@example.com" });
    becomes(201, async || second.post("/v1/admin/users", &invite).await.status.as_u16()).await;
    let invited = mailed(&platform, "in@example.com", "give this code:").await;
    let specs = json!({ "arch": "x86_64", "cpu_cores": 1, "vcpus": 1, "memory_mib": 1,
        "disk_mib": 1, "driver": "fake", "accelerator": "none", "version": "0", "templates": [] });
    let register = async |token: &Value| {
        let body = json!({ "token": token, "address": "nowhere", "specs": specs });
        platform.client_with("").post("/v1/hosts/register", &body).await
    };
    for token in [&token, &by_key] {
        register(token).await.refuses(400, "invalid_request", "address");
    }
    root.patch(&path, &json!({ "admin": false })).await.expect(200);
    for token in [&token, &by_key] {
        register(token).await.refuses(401, "invalid_token", "registration");
    }
    let anyone = platform.client_with("");
    let come = json!({ "token": invited, "password": tests::PASSWORD, "program": true });
    anyone.post("/v1/auth/activate", &come).await.refuses(401, "invalid_token", "activation");
    // Signing up fails too, since it takes an invitation whose maker may still invite.
    let body = json!({ "email": "in@example.com", "password": tests::PASSWORD, "name": "N" });
    anyone.post("/v1/auth/signup", &body).await.expect(202);
    root.post("/v1/admin/users", &json!({ "email": "in@example.com" })).await.expect(201);
    let invited = eventually("another mail", async || {
        let token = mailed(&platform, "in@example.com", "give this code:").await;
        (token != invited).then_some(token)
    })
    .await;
    // The only other mail comes from the remaining admin's invitation, which takes a first
    // password.
    let come = json!({ "token": invited, "password": "a-first-tangerine-3", "program": true });
    anyone.post("/v1/auth/activate", &come).await.expect(200);
    platform.finish();
}
