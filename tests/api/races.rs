//! Two changes at once. The test makes one of them in a transaction of its own. The request was
//! admitted before that change, waits for the transaction, and must see its result.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::future::Future;
use tests::{Answer, Client, Driver, PASSWORD, Platform, eventually, mailed};

/// Transaction that the test has begun.
pub(crate) struct Other {
    db: PgConnection,
    watch: PgConnection,
    pid: i32,
}

impl Other {
    /// Begins a transaction and runs these statements in it.
    pub(crate) async fn begin(platform: &Platform, statements: &str) -> Self {
        let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
        let watch = PgConnection::connect(&platform.database_url()).await.unwrap();
        let pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut db).await.unwrap();
        let all = format!("BEGIN; {statements}");
        sqlx::raw_sql(AssertSqlSafe(all)).execute(&mut db).await.unwrap();
        Self { db, watch, pid }
    }

    /// Waits until `count` of the platform's transactions wait for this one.
    async fn awaited(&mut self, count: i64) {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))";
        for _ in 0..600 {
            let query = sqlx::query_scalar::<_, i64>(sql).bind(self.pid);
            if query.fetch_one(&mut self.watch).await.unwrap() >= count {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{count} transactions do not wait");
    }

    async fn commit(mut self) {
        sqlx::raw_sql("COMMIT").execute(&mut self.db).await.unwrap();
    }

    /// Commits once a request waits for this transaction. Returns the answer to the request.
    pub(crate) async fn then<T>(mut self, request: impl Future<Output = T>) -> T {
        let mut request = std::pin::pin!(request);
        tokio::select! {
            _ = &mut request => panic!("the request waits for nothing"),
            () = self.awaited(1) => {}
        }
        self.commit().await;
        request.await
    }
}

async fn connect(platform: &Platform) -> PgConnection {
    PgConnection::connect(&platform.database_url()).await.unwrap()
}

async fn scalar(platform: &Platform, sql: &str) -> i64 {
    let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
    query.fetch_one(&mut connect(platform).await).await.unwrap()
}

async fn run(platform: &Platform, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(&mut connect(platform).await)
        .await
        .unwrap();
}

async fn log_in(client: &Client, email: &str, password: &str) -> Answer {
    let body = json!({ "email": email, "password": password, "program": true });
    client.post("/v1/auth/login", &body).await
}

/// Returns SQL for the id of a user.
fn user(email: &str) -> String {
    format!("(SELECT id FROM users WHERE email = '{email}')")
}

/// Returns SQL for the id of the team that a user owns.
fn team_of(email: &str) -> String {
    format!("(SELECT team_id FROM memberships WHERE role = 'owner' AND user_id = {})", user(email))
}

/// Returns the statements by which the platform resets a password.
fn reset(email: &str) -> String {
    let id = user(email);
    format!(
        "UPDATE users SET password_hash = 'new' WHERE email = '{email}'; \
         DELETE FROM sessions WHERE user_id = {id};"
    )
}

#[tokio::test]
async fn old_password_racing_reset_opens_no_session() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    platform.user("a@example.com").await;
    let changer = platform.user("b@example.com").await;
    let anyone = platform.client_with("");
    // A sign-in by the old password races with the reset.
    let other = Other::begin(&platform, &reset("a@example.com")).await;
    let answer = other.then(log_in(&anyone, "a@example.com", PASSWORD)).await;
    answer.refuses(401, "wrong_credentials", "");
    let sessions =
        format!("SELECT count(*) FROM sessions WHERE user_id = {}", user("a@example.com"));
    assert_eq!(scalar(&platform, &sessions).await, 0);
    // Somebody who knows the old password changes it, in a session that the reset ends.
    let other = Other::begin(&platform, &reset("b@example.com")).await;
    let change = json!({ "current_password": PASSWORD, "new_password": "a-thiefs-tangerine-7" });
    other.then(changer.post("/v1/me/password", &change)).await.refuses(401, "unauthorized", "");
    let kept = "SELECT count(*) FROM users WHERE password_hash = 'new'";
    assert_eq!(scalar(&platform, kept).await, 2);
    // A sign-in races with the user's disabling, and with their erasure.
    platform.user("c@example.com").await;
    let disable = "UPDATE users SET status = 'disabled' WHERE email = 'c@example.com'";
    let other = Other::begin(&platform, disable).await;
    let answer = other.then(log_in(&anyone, "c@example.com", PASSWORD)).await;
    answer.refuses(401, "wrong_credentials", "");
    platform.user("d@example.com").await;
    let erase = format!(
        "DELETE FROM memberships WHERE user_id = {}; DELETE FROM users WHERE email = 'd@example.com'",
        user("d@example.com")
    );
    let other = Other::begin(&platform, &erase).await;
    let answer = other.then(log_in(&anyone, "d@example.com", PASSWORD)).await;
    answer.refuses(401, "wrong_credentials", "");
    // The platform's own reset and a sign-in run at the same moment, in either order.
    platform.user("e@example.com").await;
    let mut password = PASSWORD.to_owned();
    for round in 0..3 {
        let email = json!({ "email": "e@example.com" });
        let mail = "give the code";
        let before = mailed_before(&platform, "e@example.com", mail);
        anyone.post("/v1/auth/password/reset", &email).await.expect(202);
        let token = eventually("a new code", async || {
            let token = mailed(&platform, "e@example.com", mail).await;
            (Some(&token) != before.as_ref()).then_some(token)
        })
        .await;
        let new = format!("another-tangerine-{round}");
        let confirm = json!({ "token": token, "new_password": new });
        let (confirmed, _) = tokio::join!(
            anyone.post("/v1/auth/password/confirm", &confirm),
            log_in(&anyone, "e@example.com", &password)
        );
        confirmed.expect(204);
        let left =
            format!("SELECT count(*) FROM sessions WHERE user_id = {}", user("e@example.com"));
        assert_eq!(scalar(&platform, &left).await, 0, "round {round}");
        password = new;
    }
    platform.finish();
}

/// Returns the code of a mail that has already come.
fn mailed_before(platform: &Platform, to: &str, holding: &str) -> Option<String> {
    let mut names: Vec<_> = std::fs::read_dir(platform.outbox()).ok()?.flatten().collect();
    names.sort_by_key(std::fs::DirEntry::file_name);
    let texts = names.iter().rev().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let mut texts = texts.filter(|text| text.contains(&format!("To: {to}")));
    let text = texts.find(|text| text.contains(holding))?;
    Some(text.split_once(holding)?.1.split_whitespace().next()?.to_owned())
}

#[tokio::test]
async fn signup_racing_activation_changes_no_account_or_other_signup() {
    let platform = Platform::start(Driver::Fake, &[("WRENN_SIGNUP", "open")]).await;
    let anyone = platform.client_with("");
    let sign_up = async |email: &str, password: &str| {
        let body = json!({ "email": email, "password": password, "name": "N" });
        anyone.post("/v1/auth/signup", &body).await.expect(202);
    };
    // The account's owner activates it while a stranger signs up with the same e-mail.
    sign_up("a@example.com", PASSWORD).await;
    mailed(&platform, "a@example.com", "give this code:").await;
    let activate = "UPDATE users SET status = 'active', password_hash = 'own' \
                    WHERE email = 'a@example.com'";
    let mut other = Other::begin(&platform, activate).await;
    sign_up("a@example.com", "a-strangers-tangerine-7").await;
    other.awaited(1).await;
    other.commit().await;
    mailed(&platform, "a@example.com", "already has an account").await;
    let own = "SELECT count(*) FROM users WHERE password_hash = 'own' AND status = 'active'";
    assert_eq!(scalar(&platform, own).await, 1);
    // A stranger signs up after the owner did, and before the owner has read the mail.
    sign_up("b@example.com", PASSWORD).await;
    let owners = mailed(&platform, "b@example.com", "give this code:").await;
    sign_up("b@example.com", "a-strangers-tangerine-7").await;
    let strangers = eventually("the other mail", async || {
        let token = mailed(&platform, "b@example.com", "give this code:").await;
        (token != owners).then_some(token)
    })
    .await;
    let activate = async |token: &str, password: &str| {
        let body = json!({ "token": token, "password": password, "program": true });
        anyone.post("/v1/auth/activate", &body).await
    };
    activate(&owners, "a-strangers-tangerine-7").await.refuses(401, "wrong_credentials", "");
    activate(&owners, PASSWORD).await.expect(200);
    activate(&strangers, "a-strangers-tangerine-7").await.refuses(401, "invalid_token", "");
    log_in(&anyone, "b@example.com", PASSWORD).await.expect(200);
    let stolen = log_in(&anyone, "b@example.com", "a-strangers-tangerine-7").await;
    stolen.refuses(401, "wrong_credentials", "");
    // A user who is disabled during the activation does not get in.
    sign_up("c@example.com", PASSWORD).await;
    let token = mailed(&platform, "c@example.com", "give this code:").await;
    let disable = "UPDATE users SET status = 'disabled' WHERE email = 'c@example.com'";
    let other = Other::begin(&platform, disable).await;
    other.then(activate(&token, PASSWORD)).await.refuses(401, "invalid_token", "");
    platform.finish();
}

#[tokio::test]
async fn admin_removed_during_request_grants_no_access() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    let (admin, _) = platform.member(&owner, &team, "admin").await;
    let (_, viewer) = platform.member(&owner, &team, "viewer").await;
    let email = admin.get("/v1/me").await.expect(200)["email"].as_str().unwrap().to_owned();
    let admin = admin.in_team(&team);
    let key = admin.post("/v1/api-keys", &json!({ "name": "k", "scopes": ["team:admin"] })).await;
    let key = platform.client_with(key.expect(201)["key"].as_str().unwrap());
    let (sql_team, sql_user) = (team_of("owner@example.com"), user(&email));
    // The platform's own removal executes these statements.
    let remove = format!(
        "SELECT 1 FROM teams WHERE id = {sql_team} FOR UPDATE; \
         DELETE FROM memberships WHERE team_id = {sql_team} AND user_id = {sql_user}; \
         UPDATE api_keys SET revoked_at = now() WHERE created_by = {sql_user};"
    );
    let back = format!(
        "INSERT INTO memberships (team_id, user_id, role) VALUES ({sql_team}, {sql_user}, 'admin'); \
         UPDATE api_keys SET revoked_at = NULL WHERE name = 'k';"
    );
    let invitations = format!("/v1/teams/{team}/invitations");
    let member = format!("/v1/teams/{team}/members/{viewer}");
    let invite = json!({ "email": "x@example.com", "role": "admin" });
    let channel = json!({ "name": "c", "url": "https://hooks.example.com/" });
    let asks: [(Method, &str, Value); 4] = [
        (Method::POST, "/v1/api-keys", json!({ "name": "new", "scopes": ["team:admin"] })),
        (Method::POST, invitations.as_str(), invite),
        (Method::POST, "/v1/channels", channel),
        (Method::PATCH, member.as_str(), json!({ "role": "member" })),
    ];
    for (client, wanted) in [(&admin, 404), (&key, 401)] {
        for (method, path, body) in &asks {
            let other = Other::begin(&platform, &remove).await;
            let request = client.request(method.clone(), path).json(body);
            let answer = other.then(client.send(request)).await;
            assert_eq!(answer.status.as_u16(), wanted, "{method} {path}: {}", answer.body);
            run(&platform, &back).await;
            eventually("they are back", async || {
                (client.get("/v1/api-keys").await.status.as_u16() == 200).then_some(())
            })
            .await;
        }
    }
    for (what, sql) in [
        ("keys", "SELECT count(*) FROM api_keys WHERE name = 'new'"),
        ("invitations", "SELECT count(*) FROM invitations WHERE email = 'x@example.com'"),
        ("channels", "SELECT count(*) FROM channels"),
        ("roles", "SELECT count(*) FROM memberships WHERE role = 'member'"),
    ] {
        assert_eq!(scalar(&platform, sql).await, 0, "{what}");
    }
    platform.finish();
}

#[tokio::test]
async fn racing_erasure_leaves_no_ownerless_team_or_teamless_member() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    let root = platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    let (_, heir) = platform.member(&owner, &team, "member").await;
    let loner = platform.user("loner@example.com").await;
    let loner = loner.get("/v1/me").await.expect(200)["id"].as_str().unwrap().to_owned();
    let (of_owner, of_loner) = (team_of("owner@example.com"), team_of("loner@example.com"));
    let heirs =
        format!("(SELECT user_id FROM memberships WHERE team_id = {of_owner} AND role = 'member')");
    // The team goes to a user who is being erased.
    let transfer = format!(
        "SELECT 1 FROM users WHERE id = {heirs} FOR SHARE; \
         SELECT 1 FROM teams WHERE id = {of_owner} FOR UPDATE; \
         CREATE TEMPORARY TABLE given ON COMMIT DROP AS SELECT {of_owner} AS team, {heirs} AS heir; \
         UPDATE memberships SET role = 'admin' WHERE team_id = (SELECT team FROM given) AND role = 'owner'; \
         UPDATE memberships SET role = 'owner' WHERE team_id = (SELECT team FROM given) \
             AND user_id = (SELECT heir FROM given);"
    );
    let other = Other::begin(&platform, &transfer).await;
    let erased = other.then(root.delete(&format!("/v1/admin/users/{heir}"))).await;
    erased.refuses(409, "owns_team_with_members", "");
    // Somebody joins a team while its only member is erased.
    let join = format!(
        "SELECT 1 FROM teams WHERE id = {of_loner} FOR UPDATE; \
         INSERT INTO memberships (team_id, user_id, role) \
             VALUES ({of_loner}, {}, 'viewer');",
        user("root@example.com")
    );
    let other = Other::begin(&platform, &join).await;
    let erased = other.then(root.delete(&format!("/v1/admin/users/{loner}"))).await;
    erased.refuses(409, "owns_team_with_members", "");
    let ownerless = "SELECT count(*) FROM teams t WHERE deleted_at IS NULL \
        AND id <> '00000000-0000-0000-0000-000000000000' \
        AND NOT EXISTS (SELECT 1 FROM memberships m WHERE m.team_id = t.id AND m.role = 'owner')";
    assert_eq!(scalar(&platform, ownerless).await, 0);
    platform.finish();
}

#[tokio::test]
async fn concurrent_account_and_channel_changes_are_serialized() {
    let platform = Platform::start(Driver::Fake, &[]).await;
    platform.user("root@example.com").await;
    let owner = platform.user("owner@example.com").await;
    let teams = owner.get("/v1/teams").await.expect(200);
    let team = teams["items"][0]["id"].as_str().unwrap().to_owned();
    // Both ways into an account are removed at once, and one must stay.
    let alone = platform.user("alone@example.com").await;
    run(
        &platform,
        &format!(
            "UPDATE users SET password_hash = NULL WHERE email = 'alone@example.com'; \
             INSERT INTO identities (provider, subject, user_id) VALUES \
             ('x', '1', {id}), ('y', '1', {id});",
            id = user("alone@example.com")
        ),
    )
    .await;
    let hold = "SELECT 1 FROM users WHERE email = 'alone@example.com' FOR UPDATE";
    let mut other = Other::begin(&platform, hold).await;
    let both = async {
        tokio::join!(alone.delete("/v1/me/providers/x"), alone.delete("/v1/me/providers/y"))
    };
    let mut both = std::pin::pin!(both);
    tokio::select! {
        _ = &mut both => panic!("they wait for nothing"),
        () = other.awaited(1) => {}
    }
    other.commit().await;
    let (one, two) = both.await;
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [204, 409], "{} {}", one.body, two.body);
    // A user without a team takes two invitations at once, and one team becomes the default.
    let guest = platform.user("guest@example.com").await;
    let own =
        guest.get("/v1/teams").await.expect(200)["items"][0]["id"].as_str().unwrap().to_owned();
    guest.delete(&format!("/v1/teams/{own}")).await.expect(204);
    let second = owner.post("/v1/teams", &json!({ "name": "Second" })).await.expect(201);
    let mut tokens: Vec<String> = Vec::new();
    for team in [team.as_str(), second["id"].as_str().unwrap()] {
        let body = json!({ "email": "guest@example.com", "role": "viewer" });
        owner.post(&format!("/v1/teams/{team}/invitations"), &body).await.expect(201);
        let token = eventually("the invitation", async || {
            let token = mailed(&platform, "guest@example.com", "wrenn team accept ").await;
            (!tokens.contains(&token)).then_some(token)
        })
        .await;
        tokens.push(token);
    }
    let hold = "SELECT 1 FROM users WHERE email = 'guest@example.com' FOR UPDATE";
    let other = Other::begin(&platform, hold).await;
    let accept =
        async |token: &str| guest.post("/v1/invitations/accept", &json!({ "token": token })).await;
    let both = async { tokio::join!(accept(&tokens[0]), accept(&tokens[1])) };
    let (one, two) = other.then(both).await;
    one.expect(200);
    two.expect(200);
    // An invitation that was taken cannot be taken again.
    accept(&tokens[0]).await.refuses(401, "invalid_token", "invitation");
    // A channel is renamed while its secret is renewed. The new secret must stay.
    let channel = json!({ "name": "c", "url": "https://hooks.example.com/" });
    let channel = owner.post("/v1/channels", &channel).await.expect(201);
    let path = format!("/v1/channels/{}", channel["id"].as_str().unwrap());
    let renew = "UPDATE channels SET version = version + 1";
    let other = Other::begin(&platform, renew).await;
    other.then(owner.patch(&path, &json!({ "name": "d" }))).await.expect(200);
    let version = "SELECT count(*) FROM channels WHERE version = 2 AND name = 'd'";
    assert_eq!(scalar(&platform, version).await, 1);
    platform.finish();
}
