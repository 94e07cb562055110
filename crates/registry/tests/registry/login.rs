//! Logins: each scheme of challenges, and the places that credentials must never be seen at.

use crate::fake::{Fake, Fault};
use crate::sample::{Sample, client, layers, reference, settings};
use registry::{Client, Error, Login, Proof};

/// Base64 of `bob:hunter22`.
const BOB: &str = "Basic Ym9iOmh1bnRlcjIy";

fn bob() -> Option<Login> {
    Some(Login::Password { username: "bob".into(), password: "hunter22".into() })
}

fn bearer(fake: &Fake) -> String {
    let realm = fake.url("/token");
    format!(r#"Bearer realm="{realm}",service="svc",scope="repository:team/app:pull""#)
}

async fn private(challenges: impl Fn(&Fake) -> Vec<String>, taken: &[&str]) -> Fake {
    let fake = Fake::start().await;
    Sample::of(b"layer").push(&fake, "team/app", "1");
    fake.demand(&challenges(&fake), taken);
    fake
}

/// Pulls all of the image with a login.
async fn pull(client: &Client, fake: &Fake, login: Option<Login>) -> Result<Proof, Error> {
    let resolved = client.resolve(&reference(fake, "team/app:1"), login).await?;
    let image = client.image(&resolved).await?;
    assert_eq!(layers(&image).await?, [b"layer"]);
    Ok(resolved.proof())
}

#[tokio::test]
async fn basic_is_sent_only_after_its_challenge() {
    let fake = private(|_| vec!["Basic realm=\"r\"".into()], &[BOB]).await;
    assert_eq!(pull(&client(&[&fake]), &fake, bob()).await.unwrap(), Proof::Caller);
    let seen = fake.seen();
    assert!(!seen[0].headers.contains_key("authorization"), "it was sent unasked");
    // Later requests bring it at once.
    assert!(seen[1..].iter().all(|seen| seen.headers["authorization"] == BOB));
    let without = pull(&client(&[&fake]), &fake, None).await.unwrap_err();
    assert!(matches!(without, Error::AccessDenied { .. }), "{without}");
    let begins = format!("access denied to '{}/team/app:1': authentication required", fake.host());
    assert!(without.to_string().starts_with(&begins), "{without}");
    assert!(without.to_string().contains("login`"), "{without}");
}

#[tokio::test]
async fn token_is_asked_for_by_the_challenge() {
    let fake = private(|fake| vec![bearer(fake)], &["Bearer t0ken"]).await;
    fake.token(r#"{"token": "t0ken", "expires_in": 300}"#, Some(BOB));
    assert_eq!(pull(&client(&[&fake]), &fake, bob()).await.unwrap(), Proof::Caller);
    let asked: Vec<_> =
        fake.seen().into_iter().filter(|seen| seen.target.starts_with("/token")).collect();
    assert_eq!(asked.len(), 1, "the token is kept");
    assert_eq!(asked[0].target, "/token?service=svc&scope=repository%3Ateam%2Fapp%3Apull");
    // Nobody but the token server gets the password.
    let others = fake.seen().into_iter().filter(|seen| !seen.target.starts_with("/token"));
    assert!(others.filter_map(|seen| seen.headers.get("authorization").cloned()).all(|v| v != BOB));
}

#[tokio::test]
async fn anonymous_token_needs_no_login() {
    let fake = private(|fake| vec![bearer(fake)], &["Bearer anon"]).await;
    fake.token(r#"{"access_token": "anon"}"#, None);
    assert_eq!(pull(&client(&[&fake]), &fake, None).await.unwrap(), Proof::Anonymous);
}

#[tokio::test]
async fn bearer_is_met_before_basic() {
    let both = |fake: &Fake| vec!["Basic realm=\"r\"".into(), bearer(fake)];
    let fake = private(both, &["Bearer t0ken"]).await;
    fake.token(r#"{"token": "t0ken"}"#, Some(BOB));
    assert_eq!(pull(&client(&[&fake]), &fake, bob()).await.unwrap(), Proof::Caller);
}

#[tokio::test]
async fn token_that_ends_early_is_renewed() {
    let fake = private(|fake| vec![bearer(fake)], &["Bearer t0ken"]).await;
    fake.token(r#"{"token": "t0ken", "expires_in": 0}"#, None);
    let asked = |fake: &Fake| fake.taken().iter().filter(|one| one.contains("/token")).count();
    pull(&client(&[&fake]), &fake, None).await.unwrap();
    assert!(asked(&fake) > 1, "an ended token was sent");
    // The registry takes another token than the one that is known.
    fake.token(r#"{"token": "t0ken", "expires_in": 300}"#, None);
    let client = client(&[&fake]);
    let resolved = client.resolve(&reference(&fake, "team/app:1"), None).await.unwrap();
    fake.token(r#"{"token": "newer", "expires_in": 300}"#, None);
    fake.demand(&[bearer(&fake)], &["Bearer newer"]);
    client.image(&resolved).await.unwrap();
}

#[tokio::test]
async fn identity_token_is_exchanged_by_post() {
    let fake = private(|fake| vec![bearer(fake)], &["Bearer t0ken"]).await;
    fake.token(r#"{"access_token": "t0ken"}"#, None);
    let login = Some(Login::IdentityToken { token: "refresh+me".into() });
    assert_eq!(pull(&client(&[&fake]), &fake, login).await.unwrap(), Proof::Caller);
    let asked = fake.seen().into_iter().find(|seen| seen.target == "/token").unwrap();
    assert_eq!(asked.method, "POST");
    assert!(asked.body.contains("grant_type=refresh_token&"), "{}", asked.body);
    assert!(asked.body.ends_with("&refresh_token=refresh%2Bme"), "{}", asked.body);
}

#[tokio::test]
async fn key_of_google_is_a_password() {
    // Base64 of `_json_key:{"k":1}`.
    let header = "Basic X2pzb25fa2V5OnsiayI6MX0=";
    let fake = private(|_| vec!["Basic".into()], &[header]).await;
    let login = Some(Login::Gcp { service_account_json: r#"{"k":1}"#.into() });
    pull(&client(&[&fake]), &fake, login).await.unwrap();
}

fn aws() -> Login {
    Login::Aws {
        access_key_id: "AKIDSECRET1".into(),
        secret_access_key: "awssecret22".into(),
        region: "eu-west-1".into(),
        session_token: Some("sessiontoken3".into()),
    }
}

#[tokio::test]
async fn aws_key_is_exchanged_for_a_password_of_ecr() {
    let header = "Basic QVdTOnBhc3M0NDQ0";
    let fake = private(|_| vec!["Basic realm=\"https://ecr/\"".into()], &[header]).await;
    fake.ecr("QVdTOnBhc3M0NDQ0");
    let mut settings = settings(&[&fake]);
    settings.ecr_endpoint = Some(fake.url("/"));
    let with_endpoint = Client::new(settings).unwrap();
    assert_eq!(pull(&with_endpoint, &fake, Some(aws())).await.unwrap(), Proof::Caller);
    let asked = fake.seen().into_iter().find(|seen| seen.target == "/").unwrap();
    let signed = asked.headers["authorization"].to_str().unwrap();
    assert!(signed.starts_with("AWS4-HMAC-SHA256 Credential=AKIDSECRET1/"), "{signed}");
    assert!(
        signed.contains("/eu-west-1/ecr/aws4_request, SignedHeaders=content-type;host;x-amz-date")
    );
    assert_eq!((asked.method.as_str(), asked.body.as_str()), ("POST", "{}"));
    assert!(asked.headers["x-amz-target"].to_str().unwrap().ends_with(".GetAuthorizationToken"));
    // A password of ECR goes to no other registry.
    let error = pull(&client(&[&fake]), &fake, Some(aws())).await.unwrap_err();
    assert!(matches!(error, Error::Login { .. }), "{error}");
}

/// The part of the acceptance test `credentials_are_nowhere` that is this crate's: no error, no
/// `Debug` and no log holds a secret, even if the registry repeats it.
#[tokio::test]
async fn credentials_are_nowhere() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // All threads share it: a scoped one may miss events that other tests' threads met first.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mut shown = String::new();
    let secrets = [
        "hunter22",
        BOB.trim_start_matches("Basic "),
        "t0kent0ken",
        "refreshsecret",
        "AKIDSECRET1",
        "awssecret22",
        "sessiontoken3",
        "QVdTOnBhc3M0NDQ0",
    ];
    let identity = || Some(Login::IdentityToken { token: "refreshsecret".into() });
    for taken in [&["Bearer t0kent0ken", BOB, "Basic QVdTOnBhc3M0NDQ0"][..], &[]] {
        for basic in [true, false] {
            for login in [bob(), identity(), Some(aws())] {
                let challenge =
                    |fake: &Fake| vec![if basic { "Basic".to_owned() } else { bearer(fake) }];
                let fake = private(challenge, taken).await;
                fake.token(r#"{"token": "t0kent0ken"}"#, None);
                fake.ecr("QVdTOnBhc3M0NDQ0");
                fake.echo();
                let (code, text) = ("BUSY", String::new());
                fake.fault("1", Fault::Status { status: 503, times: 1, code, text });
                let mut settings = settings(&[&fake]);
                settings.ecr_endpoint = Some(fake.url("/"));
                settings.registries.get_mut(&fake.host()).unwrap().login.clone_from(&login);
                shown.push_str(&format!("{settings:?} {login:?}"));
                let client = Client::new(settings).unwrap();
                match client.resolve(&reference(&fake, "team/app:1"), login).await {
                    Ok(resolved) => {
                        let image = client.image(&resolved).await;
                        shown.push_str(&format!("{resolved:?} {image:?}"));
                    }
                    Err(error) => shown.push_str(&format!("{error} {error:?}")),
                }
                // The token server refuses, and repeats the login.
                fake.token("{}", Some("nobody"));
                let error = client.resolve(&reference(&fake, "team/app:1"), bob()).await;
                shown.push_str(&format!("{error:?}"));
            }
        }
    }
    shown.push_str(&log.text());
    assert!(shown.contains("***"), "no registry repeated a secret");
    assert!(shown.contains("asks a registry again"), "nothing was logged");
    for secret in secrets {
        let at = shown.find(secret);
        assert!(
            at.is_none(),
            "{secret}: …{}…",
            &shown[at.unwrap_or(0).saturating_sub(200)..][..300]
        );
    }
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
