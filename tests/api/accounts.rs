//! Users: sign-up, activation, sign-in, sessions, passwords and deletion. Mail goes to an outbox
//! folder.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use std::time::{Duration, Instant};
use tests::{Answer, Client, Driver, PASSWORD, Platform, Smtp, eventually, mailed};

async fn platform(vars: &[(&str, &str)]) -> Platform {
    Platform::start(Driver::Fake, vars).await
}

async fn log_in(client: &Client, email: &str, password: &str) -> Answer {
    let body = json!({ "email": email, "password": password, "program": true });
    client.post("/v1/auth/login", &body).await
}

async fn refused(client: &Client, path: &str) {
    eventually("it is refused", async || {
        (client.get(path).await.status.as_u16() == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn signup_is_activated_by_mailed_code_and_allows_login() {
    let platform = platform(&[("WRENN_SIGNUP", "open")]).await;
    let anyone = platform.client_with("");
    let account = json!({ "email": " Ada@Example.com ", "password": PASSWORD, "name": "Ada" });
    let told = anyone.post("/v1/auth/signup", &account).await.expect(202);
    let token = mailed(&platform, "ada@example.com", "give this code:").await;
    log_in(&anyone, "ada@example.com", PASSWORD).await.refuses(401, "wrong_credentials", "");
    // A person with the mailed code but not the password cannot activate the account.
    let wrong = json!({ "token": token, "password": "another-tangerine" });
    anyone.post("/v1/auth/activate", &wrong).await.refuses(401, "wrong_credentials", "");
    let right = json!({ "token": token, "password": PASSWORD, "program": true });
    let came = anyone.post("/v1/auth/activate", &right).await.expect(200);
    anyone.post("/v1/auth/activate", &right).await.refuses(401, "invalid_token", "activation");
    let user = platform.client_with(came["session_token"].as_str().unwrap());
    let me = user.get("/v1/me").await.expect(200);
    assert_eq!((&me["email"], &me["name"]), (&json!("ada@example.com"), &json!("Ada")));
    // The first user is the platform's admin, and owns the team that existed before.
    assert_eq!(me["admin"], true);
    let teams = user.get("/v1/teams").await.expect(200);
    let names: Vec<_> =
        teams["items"].as_array().unwrap().iter().map(|t| t["name"].clone()).collect();
    assert_eq!(names, ["Default", "Ada's team"]);
    assert_eq!(teams["items"][1]["default"], true);
    // A second sign-up with the same e-mail gets the same answer, and another mail.
    let again = anyone.post("/v1/auth/signup", &account).await.expect(202);
    assert_eq!(again, told);
    mailed(&platform, "ada@example.com", "already has an account").await;
    let second = log_in(&anyone, "ADA@example.com", PASSWORD).await.expect(200);
    assert_ne!(second["session_token"], came["session_token"]);
    // The second user is no admin.
    let other = platform.user("bob@example.com").await;
    assert_eq!(other.get("/v1/me").await.expect(200)["admin"], false);
    platform.finish();
}

#[tokio::test]
async fn invalid_signup_names_field_and_creates_nothing() {
    let platform = platform(&[("WRENN_SIGNUP", "open")]).await;
    let anyone = platform.client_with("");
    let good = json!({ "email": "a@example.com", "password": PASSWORD, "name": "A" });
    for (field, bad) in [
        ("email", json!("no mail")),
        ("email", json!("a@b@c")),
        ("email", json!("a@example.com\r\nBcc: b@example.com")),
        ("password", json!("short")),
        ("password", json!("password123")),
        ("password", json!("x".repeat(257))),
        ("name", json!(" ")),
        ("name", json!("a\nb")),
    ] {
        let mut body = good.clone();
        body[field] = bad;
        anyone.post("/v1/auth/signup", &body).await.refuses(400, "invalid_request", field);
    }
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let users: i64 =
        sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&mut db).await.unwrap();
    assert_eq!(users, 0);
    platform.finish();
}

#[tokio::test]
async fn default_signup_requires_invitation_and_answers_all_alike() {
    let platform = platform(&[]).await;
    let root = platform.user("root@example.com").await;
    let anyone = platform.client_with("");
    assert_eq!(anyone.get("/v1/auth/providers").await.expect(200)["signup"], "invited");
    let team = root.get("/v1/teams").await.expect(200)["items"][0]["id"].clone();
    let invite = format!("/v1/teams/{}/invitations", team.as_str().unwrap());
    let body = json!({ "email": "in@example.com", "role": "viewer" });
    root.post(&invite, &body).await.expect(201);
    let account = |email: &str| json!({ "email": email, "password": PASSWORD, "name": "N" });
    let out = anyone.post("/v1/auth/signup", &account("out@example.com")).await.expect(202);
    let welcome = anyone.post("/v1/auth/signup", &account("in@example.com")).await.expect(202);
    assert_eq!(out, welcome);
    mailed(&platform, "in@example.com", "give this code:").await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let emails: Vec<String> = sqlx::query_scalar("SELECT email FROM users ORDER BY email")
        .fetch_all(&mut db)
        .await
        .unwrap();
    assert_eq!(emails, ["in@example.com", "root@example.com"]);
    platform.finish();
}

#[tokio::test]
async fn auth_answers_do_not_reveal_registered_emails() {
    let platform = platform(&[]).await;
    platform.user("known@example.com").await;
    let anyone = platform.client_with("");
    // Request ids always differ.
    let told = |answer: Answer| {
        let mut body = answer.body;
        body["error"]["request_id"] = Value::Null;
        (answer.status, body)
    };
    for (path, body) in [
        ("/v1/auth/login", json!({ "password": "not-the-password" })),
        ("/v1/auth/password/reset", json!({})),
        ("/v1/auth/signup", json!({ "password": PASSWORD, "name": "N" })),
    ] {
        let mut answers = Vec::new();
        for email in ["known@example.com", "unknown@example.com"] {
            let mut body = body.clone();
            body["email"] = email.into();
            answers.push(told(anyone.post(path, &body).await));
        }
        assert_eq!(answers[0], answers[1], "{path}");
    }
    platform.finish();
}

#[tokio::test]
async fn failed_logins_throttle_account_until_wait_is_over() {
    let platform = platform(&[]).await;
    platform.user("a@example.com").await;
    platform.user("b@example.com").await;
    let anyone = platform.client_with("");
    // An account that does not exist is throttled alike.
    for email in ["a@example.com", "nobody@example.com"] {
        for _ in 0..5 {
            let answer = log_in(&anyone, email, "wrong-password").await;
            answer.refuses(401, "wrong_credentials", "");
        }
    }
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "SELECT count(*) FROM sign_in_failures WHERE failures = 5";
    let counted: i64 = sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap();
    assert_eq!(counted, 2, "two accounts, beside what is counted by address");
    // Four more failures are entered directly, since each would take its time.
    let more = "UPDATE sign_in_failures SET failures = 9, last_at = now() WHERE failures = 5";
    sqlx::query(more).execute(&mut db).await.unwrap();
    for email in ["a@example.com", "nobody@example.com"] {
        let body = json!({ "email": email, "password": PASSWORD });
        let request = anyone.request(Method::POST, "/v1/auth/login").json(&body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 429);
        let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((5..=9).contains(&wait), "{wait}");
    }
    // Another account, from the same address, is not held up.
    log_in(&anyone, "b@example.com", PASSWORD).await.expect(200);
    let later = "UPDATE sign_in_failures SET last_at = now() - interval '9 seconds'";
    sqlx::query(later).execute(&mut db).await.unwrap();
    log_in(&anyone, "a@example.com", PASSWORD).await.expect(200);
    // A successful sign-in resets the count, so as many failures are free again.
    for _ in 0..5 {
        let answer = log_in(&anyone, "a@example.com", "wrong-password").await;
        answer.refuses(401, "wrong_credentials", "");
    }
    log_in(&anyone, "a@example.com", PASSWORD).await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn concurrent_logins_do_not_bypass_throttle() {
    let platform = platform(&[]).await;
    platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    let tries = (0..20).map(|_| log_in(&anyone, "a@example.com", "wrong-password"));
    let answers = futures::future::join_all(tries).await;
    let looked_at = answers.iter().filter(|answer| answer.status.as_u16() == 401).count();
    // A replica handles attempts one after the other. Each of two replicas may be ahead by one.
    assert!(looked_at <= 8, "{looked_at} of 20 were looked at");
    platform.finish();
}

#[tokio::test]
async fn password_reset_token_works_once_and_ends_all_sessions() {
    let platform = platform(&[]).await;
    let user = platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    let email = json!({ "email": "a@example.com" });
    anyone.post("/v1/auth/password/reset", &email).await.expect(202);
    let token = mailed(&platform, "a@example.com", "give the code").await;
    let weak = json!({ "token": token, "new_password": "password1" });
    anyone.post("/v1/auth/password/confirm", &weak).await.refuses(400, "invalid_request", "guess");
    let body = json!({ "token": token, "new_password": "a-new-tangerine-9" });
    anyone.post("/v1/auth/password/confirm", &body).await.expect(204);
    anyone.post("/v1/auth/password/confirm", &body).await.refuses(401, "invalid_token", "reset");
    refused(&user, "/v1/me").await;
    log_in(&anyone, "a@example.com", PASSWORD).await.refuses(401, "wrong_credentials", "");
    log_in(&anyone, "a@example.com", "a-new-tangerine-9").await.expect(200);
    platform.finish();
}

#[tokio::test]
async fn reset_flood_by_stranger_does_not_block_owner_reset() {
    let platform = platform(&[]).await;
    platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    let email = json!({ "email": "a@example.com" });
    anyone.post("/v1/auth/password/reset", &email).await.expect(202);
    let owners = mailed(&platform, "a@example.com", "give the code").await;
    // Strangers ask from many networks at once.
    let ask = |n: usize| {
        let ask = anyone.request(Method::POST, "/v1/auth/password/reset").json(&email);
        anyone.send(ask.header("x-forwarded-for", format!("192.0.2.{n}")))
    };
    for answer in futures::future::join_all((0..40).map(ask)).await {
        answer.expect(202);
    }
    let mails = async || {
        let files = std::fs::read_dir(platform.outbox()).unwrap().flatten();
        let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        texts.filter(|text| text.contains("give the code")).count()
    };
    // A few mails go out at once, later ones only after waits that double.
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let full = "UPDATE sign_in_failures SET failures = 40, last_at = now() WHERE failures > 5";
    let full = sqlx::query(full).execute(&mut db).await.unwrap();
    assert_eq!(full.rows_affected(), 1, "the account's, and no network's");
    let tokens = "SELECT count(*) FROM user_tokens WHERE kind = 'reset'";
    let made = eventually("the mails", async || {
        let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
        let made: i64 = sqlx::query_scalar(tokens).fetch_one(&mut db).await.unwrap();
        (made >= 6 && mails().await == usize::try_from(made).unwrap()).then_some(made)
    })
    .await;
    assert!(made < 20, "{made} of 41 were mailed");
    // The owner asks once more and is answered as ever. No mail is needed, since the owner's first
    // code and the last one are both good.
    anyone.post("/v1/auth/password/reset", &email).await.expect(202);
    let last = mailed(&platform, "a@example.com", "give the code").await;
    let after: i64 = sqlx::query_scalar(tokens).fetch_one(&mut db).await.unwrap();
    assert_eq!(after, made, "none is mailed");
    let body = json!({ "token": owners, "new_password": "a-new-tangerine-9" });
    anyone.post("/v1/auth/password/confirm", &body).await.expect(204);
    // Use of one code ends all the others.
    let body = json!({ "token": last, "new_password": "another-tangerine-9" });
    anyone.post("/v1/auth/password/confirm", &body).await.refuses(401, "invalid_token", "reset");
    // The next request is mailed again.
    anyone.post("/v1/auth/password/reset", &email).await.expect(202);
    let wanted = usize::try_from(made + 1).unwrap();
    eventually("another mail", async || (mails().await == wanted).then_some(())).await;
    platform.finish();
}

#[tokio::test]
async fn throttled_account_can_still_change_password_in_session() {
    let platform = platform(&[]).await;
    let user = platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    log_in(&anyone, "a@example.com", "wrong-password").await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let more = "UPDATE sign_in_failures SET failures = 40, last_at = now()";
    sqlx::query(more).execute(&mut db).await.unwrap();
    log_in(&anyone, "a@example.com", PASSWORD).await.refuses(429, "too_many_requests", "");
    let change = json!({ "current_password": PASSWORD, "new_password": "a-new-tangerine-9" });
    user.post("/v1/me/password", &change).await.expect(204);
    platform.finish();
}

#[tokio::test]
async fn throttle_counts_ipv6_network_once_and_trusts_last_forwarded_address() {
    let platform = platform(&[]).await;
    platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    let from = async |lines: &[&str], email: &str, password: &str| {
        let body = json!({ "email": email, "password": password, "program": true });
        let mut ask = anyone.request(Method::POST, "/v1/auth/login").json(&body);
        for line in lines {
            ask = ask.header("x-forwarded-for", *line);
        }
        anyone.send(ask).await
    };
    let forged = "198.51.100.9";
    for (n, last) in ["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:0:9::3"].iter().enumerate() {
        let email = format!("nobody-{n}@example.com");
        from(&[forged, last], &email, "wrong-password").await.refuses(401, "wrong_credentials", "");
    }
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let sql = "SELECT array_agg(failures ORDER BY failures) FROM sign_in_failures";
    let counted: Vec<i32> = sqlx::query_scalar(sql).fetch_one(&mut db).await.unwrap();
    assert_eq!(counted, [1, 1, 1, 3], "three accounts and one network");
    let came = from(&[forged, "192.0.2.7"], "a@example.com", PASSWORD).await.expect(200);
    let user = platform.client_with(came["session_token"].as_str().unwrap());
    let sessions = user.get("/v1/me/sessions").await.expect(200);
    assert_eq!(sessions["items"][0]["address"], "192.0.2.7");
    platform.finish();
}

#[tokio::test]
async fn expired_password_reset_token_is_refused() {
    let platform = platform(&[]).await;
    platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    let email = json!({ "email": "a@example.com" });
    anyone.post("/v1/auth/password/reset", &email).await.expect(202);
    let token = mailed(&platform, "a@example.com", "give the code").await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let kept: Vec<u8> =
        sqlx::query_scalar("SELECT token_hash FROM user_tokens").fetch_one(&mut db).await.unwrap();
    assert_eq!(kept.len(), 32, "what is kept is a hash");
    let late = "UPDATE user_tokens SET expires_at = now() - interval '1 second'";
    sqlx::query(late).execute(&mut db).await.unwrap();
    let body = json!({ "token": token, "new_password": "a-new-tangerine-9" });
    anyone.post("/v1/auth/password/confirm", &body).await.refuses(401, "invalid_token", "reset");
    platform.finish();
}

#[tokio::test]
async fn sessions_are_listed_and_ended_singly_or_all_together() {
    let platform = platform(&[]).await;
    let first = platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    let mut others = Vec::new();
    for _ in 0..3 {
        let came = log_in(&anyone, "a@example.com", PASSWORD).await.expect(200);
        others.push(platform.client_with(came["session_token"].as_str().unwrap()));
    }
    let sessions = first.get("/v1/me/sessions").await.expect(200);
    let items = sessions["items"].as_array().unwrap();
    assert_eq!(items.len(), 4);
    assert_eq!(items.iter().filter(|s| s["current"] == true).count(), 1);
    assert!(items.iter().all(|s| s["kind"] == "program" && s["address"] == "127.0.0.1"));
    let newest = items[0]["id"].as_str().unwrap();
    // A stranger cannot end sessions of others.
    let stranger = platform.user("b@example.com").await;
    let path = format!("/v1/me/sessions/{newest}");
    stranger.delete(&path).await.refuses(404, "not_found", "session");
    others[2].get("/v1/me").await.expect(200);
    first.delete(&path).await.expect(204);
    refused(&others[2], "/v1/me").await;
    others[1].post("/v1/auth/logout", &json!({})).await.expect(204);
    refused(&others[1], "/v1/me").await;
    first.delete("/v1/me/sessions").await.expect(204);
    refused(&others[0], "/v1/me").await;
    first.get("/v1/me").await.expect(200);
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    let dump: Vec<String> =
        sqlx::query_scalar("SELECT s::text FROM sessions s").fetch_all(&mut db).await.unwrap();
    assert!(!dump.concat().contains(&first.key()[4..]), "a session's token is stored as it is");
    platform.finish();
}

#[tokio::test]
async fn jwt_authenticates_user_until_session_ends() {
    let platform = platform(&[]).await;
    let user = platform.user("a@example.com").await;
    let made = user.post("/v1/auth/token", &json!({})).await.expect(200);
    let program = platform.client_with(made["token"].as_str().unwrap());
    let me = program.get("/v1/me").await.expect(200);
    assert_eq!(me["email"], "a@example.com");
    program.post("/v1/auth/token", &json!({})).await.refuses(400, "invalid_request", "session");
    let id = program.create(&json!({})).await;
    user.get(&format!("/v1/capsules/{id}")).await.expect(200);
    user.post("/v1/auth/logout", &json!({})).await.expect(204);
    refused(&program, "/v1/me").await;
    platform.finish();
}

#[tokio::test]
async fn session_cookie_requires_csrf_token_and_own_origin() {
    let platform = platform(&[]).await;
    platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    let body = json!({ "email": "a@example.com", "password": PASSWORD });
    let request = anyone.request(Method::POST, "/v1/auth/login").json(&body);
    let answer = request.send().await.unwrap();
    let set = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
    for part in ["wrenn-session=wrs_", "HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(set.contains(part), "{part} not in {set}");
    }
    assert!(!set.contains("Domain"), "{set}");
    let came: Value = answer.json().await.unwrap();
    assert!(came.get("session_token").is_none(), "a page needs no token");
    let csrf = came["csrf_token"].as_str().unwrap();
    let cookie = set.split(';').next().unwrap();
    let with = |method: Method, path: &str| anyone.request(method, path).header("cookie", cookie);
    let me = anyone.send(with(Method::GET, "/v1/me")).await.expect(200);
    assert_eq!(me["csrf_token"], csrf);
    let named = |request: reqwest::RequestBuilder| request.json(&json!({ "name": "B" }));
    anyone.send(named(with(Method::PATCH, "/v1/me"))).await.refuses(403, "csrf", "X-CSRF-Token");
    let wrong = with(Method::PATCH, "/v1/me").header("x-csrf-token", "0".repeat(64));
    anyone.send(named(wrong)).await.refuses(403, "csrf", "");
    let right = with(Method::PATCH, "/v1/me").header("x-csrf-token", csrf);
    assert_eq!(anyone.send(named(right)).await.expect(200)["name"], "B");
    // A page of another origin cannot open a terminal.
    let create = with(Method::POST, "/v1/capsules").header("x-csrf-token", csrf).body("{}");
    let id = anyone.send(create).await.expect(201)["id"].as_str().unwrap().to_owned();
    for (origin, wanted) in [("https://evil.example", 403), (anyone.base(), 101)] {
        let socket = with(Method::GET, &format!("/v1/capsules/{id}/pty"))
            .header("origin", origin)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(socket.send().await.unwrap().status().as_u16(), wanted, "{origin}");
    }
    // A page of another origin cannot sign its visitors in.
    let body = json!({ "email": "a@example.com", "password": PASSWORD });
    let visit =
        anyone.request(Method::POST, "/v1/auth/login").header("origin", "https://evil.example");
    anyone.send(visit.json(&body)).await.refuses(403, "csrf", "page of this platform");
    let own = anyone.request(Method::POST, "/v1/auth/login").header("origin", anyone.base());
    anyone.send(own.json(&body)).await.expect(200);
    let out = with(Method::POST, "/v1/auth/logout").header("x-csrf-token", csrf);
    let answer = out.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 204);
    assert!(answer.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    platform.finish();
}

#[tokio::test]
async fn session_cookie_over_https_has_host_prefix() {
    let platform = platform(&[("WRENN_PUBLIC_URL", "https://wrenn.example.com")]).await;
    platform.user("a@example.com").await;
    let anyone = platform.client_with("");
    let body = json!({ "email": "a@example.com", "password": PASSWORD });
    let request = anyone.request(Method::POST, "/v1/auth/login").json(&body);
    let set = request.send().await.unwrap().headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(set.starts_with("__Host-wrenn-session=wrs_") && set.contains("; Secure"), "{set}");
    platform.finish();
}

#[tokio::test]
async fn last_active_admin_cannot_be_removed() {
    let platform = platform(&[]).await;
    let root = platform.user("root@example.com").await;
    let id = root.get("/v1/me").await.expect(200)["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/admin/users/{id}");
    for change in [json!({ "admin": false }), json!({ "status": "disabled" })] {
        root.patch(&path, &change).await.refuses(409, "last_admin", "last admin");
    }
    root.delete(&path).await.refuses(409, "last_admin", "");
    let bye = root.request(Method::DELETE, "/v1/me");
    let bye = bye.json(&json!({ "confirmation": "root@example.com" }));
    root.send(bye).await.refuses(409, "last_admin", "");
    let second = platform.user("b@example.com").await;
    let other = second.get("/v1/me").await.expect(200)["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/admin/users/{other}");
    root.patch(&path, &json!({ "admin": true })).await.expect(200);
    // Two admins demote each other at the same moment: one of them stays admin.
    let mine = format!("/v1/admin/users/{id}");
    let down = json!({ "admin": false });
    let (one, two) = tokio::join!(root.patch(&path, &down), second.patch(&mine, &down));
    let statuses = [one.status.as_u16(), two.status.as_u16()];
    assert!(statuses.contains(&200), "{statuses:?}");
    let users = platform.client().get("/v1/admin/users").await.expect(200);
    let admins = users["items"].as_array().unwrap().iter().filter(|u| u["admin"] == true).count();
    assert_eq!(admins, 1, "{statuses:?}");
    platform.finish();
}

#[tokio::test]
async fn user_disabled_before_activation_cannot_activate() {
    let platform = platform(&[]).await;
    let root = platform.user("root@example.com").await;
    let body = json!({ "email": "a@example.com" });
    let user = root.post("/v1/admin/users", &body).await.expect(201);
    let token = mailed(&platform, "a@example.com", "give this code:").await;
    let path = format!("/v1/admin/users/{}", user["id"].as_str().unwrap());
    root.patch(&path, &json!({ "status": "active" })).await.refuses(409, "conflict", "activated");
    root.patch(&path, &json!({ "status": "disabled" })).await.expect(200);
    let anyone = platform.client_with("");
    let come = json!({ "token": token, "password": PASSWORD, "program": true });
    anyone.post("/v1/auth/activate", &come).await.refuses(401, "invalid_token", "activation");
    // The body is larger than any sign-in needs, so it is not read.
    let big = json!({ "email": "a@example.com", "password": "x".repeat(300 << 10) });
    anyone.post("/v1/auth/login", &big).await.refuses(413, "too_large", "262144");
    platform.finish();
}

#[tokio::test]
async fn disabled_user_loses_login_and_keys_until_enabled() {
    let platform = platform(&[]).await;
    let root = platform.user("root@example.com").await;
    let user = platform.user("a@example.com").await;
    let key = user.post("/v1/api-keys", &json!({ "name": "k" })).await.expect(201);
    let key = platform.client_with(key["key"].as_str().unwrap());
    key.get("/v1/capsules").await.expect(200);
    let id = user.get("/v1/me").await.expect(200)["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/admin/users/{id}");
    root.patch(&path, &json!({ "status": "disabled" })).await.expect(200);
    let since = Instant::now();
    refused(&user, "/v1/me").await;
    refused(&key, "/v1/capsules").await;
    assert!(since.elapsed() < Duration::from_secs(10), "pushed, not waited for");
    let anyone = platform.client_with("");
    log_in(&anyone, "a@example.com", PASSWORD).await.refuses(401, "wrong_credentials", "");
    root.patch(&path, &json!({ "status": "active" })).await.expect(200);
    log_in(&anyone, "a@example.com", PASSWORD).await.expect(200);
    eventually("the key is of use again", async || {
        (key.get("/v1/capsules").await.status.as_u16() == 200).then_some(())
    })
    .await;
    platform.finish();
}

#[tokio::test]
async fn user_erasure_removes_personal_data_and_anonymizes_audit_log() {
    let platform = platform(&[]).await;
    platform.user("root@example.com").await;
    let user = platform.user("gone@example.com").await;
    let me = user.get("/v1/me").await.expect(200);
    let id = me["id"].as_str().unwrap();
    let capsule = user.create(&json!({})).await;
    let key = user.post("/v1/api-keys", &json!({ "name": "k" })).await.expect(201);
    let key = platform.client_with(key["key"].as_str().unwrap());
    let bye = |client: &Client, email: &str| {
        client.request(Method::DELETE, "/v1/me").json(&json!({ "confirmation": email }))
    };
    user.send(bye(&user, "else@example.com")).await.refuses(400, "invalid_request", "confirmation");
    user.send(bye(&user, "gone@example.com")).await.refuses(409, "team_not_empty", "1 capsules");
    user.delete(&format!("/v1/capsules/{capsule}")).await.expect(204);
    user.send(bye(&user, "gone@example.com")).await.expect(204);
    refused(&user, "/v1/me").await;
    refused(&key, "/v1/capsules").await;
    let mut db = PgConnection::connect(&platform.database_url()).await.unwrap();
    for table in ["users", "sessions", "memberships", "audit_logs", "teams", "invitations"] {
        let sql =
            format!("SELECT count(*) FROM {table} t WHERE t::text LIKE $1 OR t::text LIKE $2");
        let told = |text: &str| format!("%{text}%");
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(told(id))
            .bind(told("gone@example.com"))
            .fetch_one(&mut db)
            .await
            .unwrap();
        assert_eq!(count, 0, "{table}");
    }
    let log = platform.client().get("/v1/admin/audit-logs?actor=erased").await.expect(200);
    let actions: Vec<_> =
        log["items"].as_array().unwrap().iter().map(|e| e["action"].clone()).collect();
    assert!(actions.contains(&json!("capsule.delete")), "{actions:?}");
    platform.finish();
}

#[tokio::test]
async fn mail_goes_through_configured_smtp_server() {
    let server = Smtp::start().await;
    let vars = [("WRENN_SMTP_URL", server.url.as_str()), ("WRENN_MAIL_FROM", "W <w@example.com>")];
    let platform = platform(&vars).await;
    let body = json!({ "email": "a@example.com" });
    platform.client().post("/v1/admin/users", &body).await.expect(201);
    let mail = eventually("the mail has come", async || server.mails().pop()).await;
    for part in ["MAIL FROM:<w@example.com>", "RCPT TO:<a@example.com>", "give this code:"] {
        assert!(mail.contains(part), "`{part}` not in {mail}");
    }
    assert!(
        !platform.outbox().exists() || std::fs::read_dir(platform.outbox()).unwrap().count() == 0
    );
    platform.finish();
}

#[tokio::test]
async fn signup_on_a_platform_without_it_is_refused_with_the_way_in() {
    let platform = platform(&[("WRENN_SIGNUP", "off")]).await;
    let anyone = platform.client_with("");
    let account = json!({ "email": "ada@example.com", "password": PASSWORD, "name": "Ada" });
    let signed = anyone.post("/v1/auth/signup", &account).await;
    signed.refuses(403, "forbidden", "ask an admin of the platform for an invitation");
    platform.finish();
}

#[tokio::test]
async fn user_creation_with_unreachable_mail_server_gets_mail_failed() {
    let mut platform = platform(&[("WRENN_SIGNUP", "open")]).await;
    platform.kill();
    // The mail server does not answer.
    platform.set_var("WRENN_SMTP_URL", Some("smtp://127.0.0.1:1"));
    platform.resume().await;
    let body = json!({ "email": "a@example.com" });
    platform.client().post("/v1/admin/users", &body).await.refuses(502, "mail_failed", "log");
    platform.finish();
}
