//! Sign-in elsewhere, against a provider of the test's own. It speaks OpenID Connect with signed
//! tokens, and GitHub's two requests.

use crate::races::Other;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tests::{Client, Driver, Heard, Hook, PASSWORD, Platform, mailed};

/// State of the provider: the signed-in person, and the request that the code answers.
#[derive(Default)]
struct Known {
    who: Value,
    nonce: String,
    challenge: String,
    url: String,
}

struct Provider {
    hook: Hook,
    known: Arc<Mutex<Known>>,
}

fn form(text: &str) -> HashMap<String, String> {
    let url = reqwest::Url::parse(&format!("http://x/?{text}")).unwrap();
    url.query_pairs().map(|(k, v)| (k.into_owned(), v.into_owned())).collect()
}

fn signed(pair: &EcdsaKeyPair, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&json!({ "alg": "ES256", "kid": "k" })), part(claims));
    let signature = pair.sign(&aws_lc_rs::rand::SystemRandom::new(), text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

impl Provider {
    async fn start() -> Self {
        let known: Arc<Mutex<Known>> = Arc::default();
        let at = Arc::clone(&known);
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let hook = Hook::start(move |heard| answer(heard, &at.lock().unwrap(), &pair)).await;
        known.lock().unwrap().url = hook.url.clone();
        Self { hook, known }
    }

    /// Sets the person who is signed in at the provider.
    fn is(&self, who: Value) {
        self.known.lock().unwrap().who = who;
    }

    /// Goes through the sign-in as a browser does. Returns the callback's path and the cookie.
    async fn go(&self, client: &Client, name: &str) -> (String, String) {
        let begin = client.request(Method::GET, &format!("/v1/auth/oauth/{name}"));
        let answer = begin.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 303, "{}", answer.text().await.unwrap());
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
        let url = answer.headers()["location"].to_str().unwrap().to_owned();
        self.consent(&url, name, cookie.split(';').next().unwrap())
    }

    /// Consents at the provider. Returns the callback's path and the cookie.
    fn consent(&self, url: &str, name: &str, cookie: &str) -> (String, String) {
        assert!(url.starts_with(&self.hook.url), "{url}");
        let asked = form(url.split_once('?').unwrap().1);
        assert_eq!(
            (asked["client_id"].as_str(), asked["response_type"].as_str()),
            ("wrenn", "code")
        );
        assert_eq!(asked["code_challenge_method"], "S256");
        assert!(asked["redirect_uri"].ends_with(&format!("/v1/auth/oauth/{name}/callback")));
        let mut known = self.known.lock().unwrap();
        known.nonce = asked["nonce"].clone();
        known.challenge = asked["code_challenge"].clone();
        let path = format!("/v1/auth/oauth/{name}/callback?code=good&state={}", asked["state"]);
        (path, cookie.to_owned())
    }
}

fn answer(heard: &Heard, known: &Known, pair: &EcdsaKeyPair) -> (u16, String, String) {
    let json =
        |value: Value| (200, "content-type: application/json\r\n".to_owned(), value.to_string());
    let none = (404, String::new(), String::new());
    let point = pair.public_key().as_ref();
    match heard.line.as_str() {
        "GET /.well-known/openid-configuration" => json(json!({
            "issuer": known.url, "authorization_endpoint": format!("{}/authorize", known.url),
            "token_endpoint": format!("{}/token", known.url), "jwks_uri": format!("{}/keys", known.url),
        })),
        "GET /keys" => json(json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]) }] })),
        "POST /token" | "POST /login/oauth/access_token" => {
            let body = form(std::str::from_utf8(&heard.body).unwrap());
            let basic = base64::engine::general_purpose::STANDARD.encode("wrenn:secret");
            let client = heard.headers.get("authorization") == Some(&format!("Basic {basic}"));
            let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&body["code_verifier"]));
            if !client || body["code"] != "good" || challenge != known.challenge {
                return (400, String::new(), r#"{"error":"invalid_grant"}"#.to_owned());
            }
            let soon = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let mut claims = json!({ "iss": known.url, "aud": "wrenn", "nonce": known.nonce,
                "exp": soon.as_secs() + 300 });
            claims.as_object_mut().unwrap().extend(known.who.as_object().unwrap().clone());
            json(
                json!({ "access_token": "there", "token_type": "bearer", "id_token": signed(pair, &claims) }),
            )
        }
        "GET /api/v3/user" if heard.headers["authorization"] == "Bearer there" => {
            json(json!({ "id": 7, "login": "octo", "name": null }))
        }
        "GET /api/v3/user/emails" if heard.headers["authorization"] == "Bearer there" => {
            json(json!([
                { "email": "no@example.com", "primary": false, "verified": true },
                { "email": "octo@example.com", "primary": true, "verified": known.who["verified"] },
            ]))
        }
        _ => none,
    }
}

async fn platform(provider: &Provider, signup: &str) -> Platform {
    let url = provider.hook.url.as_str();
    let vars = [
        ("WRENN_SIGNUP", signup),
        ("OIDC_ISSUER", url),
        ("OIDC_CLIENT_ID", "wrenn"),
        ("OIDC_CLIENT_SECRET", "secret"),
        ("OIDC_NAME", "corp"),
        ("OAUTH_GITHUB_CLIENT_ID", "wrenn"),
        ("OAUTH_GITHUB_CLIENT_SECRET", "secret"),
        ("OAUTH_GITHUB_URL", url),
    ];
    Platform::start(Driver::Fake, &vars).await
}

/// Returns from the provider to the platform. Returns the session's cookie, or the status and body
/// of an error.
async fn back(client: &Client, path: &str, cookie: &str) -> Result<String, (u16, Value)> {
    let answer = client.request(Method::GET, path).header("cookie", cookie).send().await.unwrap();
    let status = answer.status().as_u16();
    if status != 303 {
        return Err((status, answer.json().await.unwrap()));
    }
    assert_eq!(answer.headers()["location"], "/");
    let cookies = answer.headers().get_all("set-cookie").iter();
    let mut cookies = cookies.map(|cookie| cookie.to_str().unwrap().split(';').next().unwrap());
    Ok(cookies.find(|cookie| cookie.starts_with("wrenn-session=")).unwrap().to_owned())
}

async fn me(client: &Client, cookie: &str) -> Value {
    client.send(client.request(Method::GET, "/v1/me").header("cookie", cookie)).await.expect(200)
}

fn who(subject: &str, email: &str) -> Value {
    json!({ "sub": subject, "email": email, "email_verified": true, "name": "Corp Person" })
}

#[tokio::test]
async fn oidc_login_creates_user_and_finds_same_user_again() {
    let provider = Provider::start().await;
    let platform = platform(&provider, "open").await;
    let anyone = platform.client_with("");
    let known = anyone.get("/v1/auth/providers").await.expect(200);
    assert_eq!(known["providers"], json!(["github", "corp"]));
    provider.is(who("1", "P@example.com"));
    let (path, cookie) = provider.go(&anyone, "corp").await;
    let session = back(&anyone, &path, &cookie).await.unwrap();
    let first = me(&anyone, &session).await;
    assert_eq!((&first["email"], &first["name"]), (&json!("p@example.com"), &json!("Corp Person")));
    assert_eq!((&first["has_password"], &first["providers"]), (&json!(false), &json!(["corp"])));
    // A state works once.
    let (status, _) = back(&anyone, &path, &cookie).await.unwrap_err();
    assert_eq!(status, 401);
    // The e-mail at the provider has changed, but the subject has not.
    provider.is(who("1", "new@example.com"));
    let (path, cookie) = provider.go(&anyone, "corp").await;
    let session = back(&anyone, &path, &cookie).await.unwrap();
    assert_eq!(me(&anyone, &session).await["id"], first["id"]);
    platform.finish();
}

#[tokio::test]
async fn oauth_login_is_bound_to_its_browser_and_takes_over_no_account() {
    let provider = Provider::start().await;
    let platform = platform(&provider, "open").await;
    let anyone = platform.client_with("");
    let user = platform.user("a@example.com").await;
    provider.is(who("1", "b@example.com"));
    let (path, cookie) = provider.go(&anyone, "corp").await;
    for other in ["", "wrenn-oauth=0000"] {
        let (status, body) = back(&anyone, &path, other).await.unwrap_err();
        assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_token")));
    }
    let wrong = path.replace("code=good", "code=bad");
    let (status, body) = back(&anyone, &wrong, &cookie).await.unwrap_err();
    assert_eq!((status, &body["error"]["code"]), (401, &json!("sign_in_failed")));
    // The e-mail belongs to another user, whether the provider has verified it or not.
    for verified in [true, false] {
        let mut taken = who("2", "a@example.com");
        taken["email_verified"] = verified.into();
        provider.is(taken);
        let (path, cookie) = provider.go(&anyone, "corp").await;
        let (status, _) = back(&anyone, &path, &cookie).await.unwrap_err();
        assert_eq!(status, 401);
    }
    // The token was made for another sign-in.
    provider.is(who("3", "c@example.com"));
    let (path, cookie) = provider.go(&anyone, "corp").await;
    provider.known.lock().unwrap().nonce = "another".to_owned();
    assert!(back(&anyone, &path, &cookie).await.is_err());
    // A person who is denied at the provider comes back with an error.
    let (path, cookie) = provider.go(&anyone, "corp").await;
    let denied = path.replace("code=good", "error=access_denied");
    let (_, body) = back(&anyone, &denied, &cookie).await.unwrap_err();
    assert!(body["error"]["message"].as_str().unwrap().contains("access_denied"), "{body}");
    assert_eq!(user.get("/v1/me").await.expect(200)["providers"], json!([]));
    platform.finish();
}

#[tokio::test]
async fn github_provider_can_be_linked_and_unlinked() {
    let provider = Provider::start().await;
    let platform = platform(&provider, "invited").await;
    let anyone = platform.client_with("");
    let user = platform.user("a@example.com").await;
    provider.is(json!({ "verified": true }));
    // Sign-up takes an invitation here.
    let (path, cookie) = provider.go(&anyone, "github").await;
    let (status, body) = back(&anyone, &path, &cookie).await.unwrap_err();
    assert_eq!(status, 401, "{body}");
    // A user may add a provider whatever the e-mail there, but only in the browser that asks.
    let no = user.post("/v1/me/providers/github", &json!({})).await;
    no.refuses(400, "invalid_request", "authorization");
    let session = browser(&anyone, "a@example.com").await;
    let (path, state) = add(&provider, &anyone, &session).await;
    back(&anyone, &path, &format!("{state}; {}", session.0)).await.unwrap();
    assert_eq!(user.get("/v1/me").await.expect(200)["providers"], json!(["github"]));
    let (path, cookie) = provider.go(&anyone, "github").await;
    let session = back(&anyone, &path, &cookie).await.unwrap();
    assert_eq!(me(&anyone, &session).await["email"], "a@example.com");
    user.delete("/v1/me/providers/github").await.expect(204);
    user.delete("/v1/me/providers/github").await.refuses(404, "not_found", "provider");
    // An invited person signs in by the provider.
    let body = json!({ "email": "octo@example.com" });
    platform.client().post("/v1/admin/users", &body).await.expect(201);
    let (path, cookie) = provider.go(&anyone, "github").await;
    let session = back(&anyone, &path, &cookie).await.unwrap();
    let octo = me(&anyone, &session).await;
    assert_eq!((&octo["email"], &octo["name"]), (&json!("octo@example.com"), &json!("octo")));
    // The only way to sign in cannot be removed.
    let csrf = octo["csrf_token"].as_str().unwrap();
    let remove = anyone.request(Method::DELETE, "/v1/me/providers/github");
    let remove = remove.header("cookie", &session).header("x-csrf-token", csrf);
    anyone.send(remove).await.refuses(409, "conflict", "only sign-in method");
    anyone.get("/v1/auth/oauth/gitlab").await.refuses(404, "not_found", "provider");
    platform.finish();
}

/// Signs in as a page does. Returns the session's cookie and the CSRF token.
async fn browser(client: &Client, email: &str) -> (String, String) {
    let body = json!({ "email": email, "password": PASSWORD });
    let ask = client.request(Method::POST, "/v1/auth/login").json(&body);
    let answer = ask.send().await.unwrap();
    let cookie =
        answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let said: Value = answer.json().await.unwrap();
    (cookie, said["csrf_token"].as_str().unwrap().to_owned())
}

/// Asks, in a session, to add GitHub, and consents there. Returns the callback's path and the
/// state's cookie.
async fn add(provider: &Provider, client: &Client, session: &(String, String)) -> (String, String) {
    let ask = client.request(Method::POST, "/v1/me/providers/github");
    let ask = ask.header("cookie", &session.0).header("x-csrf-token", &session.1);
    let asked = ask.send().await.unwrap();
    assert_eq!(asked.status().as_u16(), 200);
    let cookie = asked.headers()["set-cookie"].to_str().unwrap().to_owned();
    let url = asked.json::<Value>().await.unwrap()["auth_url"].as_str().unwrap().to_owned();
    provider.consent(&url, "github", cookie.split(';').next().unwrap())
}

#[tokio::test]
async fn provider_is_linked_only_in_session_that_asked() {
    let provider = Provider::start().await;
    let platform = platform(&provider, "open").await;
    let anyone = platform.client_with("");
    let attacker = platform.user("attacker@example.com").await;
    let victim = platform.user("victim@example.com").await;
    provider.is(json!({ "verified": true }));
    let attackers = browser(&anyone, "attacker@example.com").await;
    let victims = browser(&anyone, "victim@example.com").await;
    // The attacker's state is of no use in a victim's browser, signed in or not.
    for cookie in [victims.0.as_str(), ""] {
        let (path, state) = add(&provider, &anyone, &attackers).await;
        let (status, body) = back(&anyone, &path, &format!("{state}; {cookie}")).await.unwrap_err();
        assert_eq!((status, &body["error"]["code"]), (401, &json!("sign_in_failed")));
    }
    // The state is of no use in another session of the same user, or once the session has ended.
    let second = browser(&anyone, "attacker@example.com").await;
    let (path, state) = add(&provider, &anyone, &attackers).await;
    assert!(back(&anyone, &path, &format!("{state}; {}", second.0)).await.is_err());
    let (path, state) = add(&provider, &anyone, &second).await;
    let out = anyone.request(Method::POST, "/v1/auth/logout");
    let out = out.header("cookie", &second.0).header("x-csrf-token", &second.1);
    anyone.send(out).await.expect(204);
    let (status, body) = back(&anyone, &path, &format!("{state}; {}", second.0)).await.unwrap_err();
    assert_eq!((status, &body["error"]["code"]), (401, &json!("invalid_token")));
    for user in [&attacker, &victim] {
        assert_eq!(user.get("/v1/me").await.expect(200)["providers"], json!([]));
    }
    platform.finish();
}

#[tokio::test]
async fn oauth_login_racing_user_disable_opens_no_session() {
    let provider = Provider::start().await;
    let platform = platform(&provider, "open").await;
    let anyone = platform.client_with("");
    platform.user("root@example.com").await;
    provider.is(who("1", "p@example.com"));
    let (path, cookie) = provider.go(&anyone, "corp").await;
    back(&anyone, &path, &cookie).await.unwrap();
    let (path, cookie) = provider.go(&anyone, "corp").await;
    let disable = "UPDATE users SET status = 'disabled' WHERE email = 'p@example.com'; \
                   DELETE FROM sessions WHERE user_id = \
                   (SELECT id FROM users WHERE email = 'p@example.com');";
    let other = Other::begin(&platform, disable).await;
    let (status, body) = other.then(back(&anyone, &path, &cookie)).await.unwrap_err();
    assert_eq!((status, &body["error"]["code"]), (401, &json!("sign_in_failed")), "{body}");
    platform.finish();
}

#[tokio::test]
async fn signup_by_stranger_does_not_block_provider_login() {
    let provider = Provider::start().await;
    let platform = platform(&provider, "open").await;
    let anyone = platform.client_with("");
    let body = json!({ "email": "p@example.com", "password": PASSWORD, "name": "Stranger" });
    anyone.post("/v1/auth/signup", &body).await.expect(202);
    let strangers = mailed(&platform, "p@example.com", "give this code:").await;
    provider.is(who("1", "p@example.com"));
    let (path, cookie) = provider.go(&anyone, "corp").await;
    let session = back(&anyone, &path, &cookie).await.unwrap();
    let came = me(&anyone, &session).await;
    assert_eq!((&came["name"], &came["has_password"]), (&json!("Corp Person"), &json!(false)));
    // The password that the stranger chose opens nothing.
    let come = json!({ "token": strangers, "password": PASSWORD });
    anyone.post("/v1/auth/activate", &come).await.refuses(401, "invalid_token", "activation");
    let log_in = json!({ "email": "p@example.com", "password": PASSWORD });
    anyone.post("/v1/auth/login", &log_in).await.refuses(401, "wrong_credentials", "");
    platform.finish();
}
