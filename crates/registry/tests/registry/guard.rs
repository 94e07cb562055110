//! The acceptance test `realm_and_redirect_guard`. Token servers and redirects at private addresses
//! are not asked unless the operator named them. No other origin sees a credential.

use crate::fake::{Fake, Fault};
use crate::sample::{Sample, client, layers, pull, reference, settings};
use registry::{Client, Error, Login};

fn bob() -> Option<Login> {
    Some(Login::Password { username: "bob".into(), password: "hunter22".into() })
}

#[tokio::test]
async fn realm_at_an_unnamed_private_address_is_refused() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    Sample::of(b"layer").push(&fake, "team/app", "1");
    other.token(r#"{"token": "t"}"#, None);
    let metadata = "http://169.254.169.254/latest".to_owned();
    let localhost = other.url("/token").replace("127.0.0.1", "localhost");
    for realm in [other.url("/token"), metadata, localhost, "http://[::1]/".to_owned()] {
        fake.demand(&[format!("Bearer realm=\"{realm}\"")], &["Bearer t"]);
        let client = client(&[&fake]);
        let error = client.resolve(&reference(&fake, "team/app:1"), bob()).await.unwrap_err();
        assert!(matches!(error, Error::PrivateAddress { .. }), "{realm}: {error}");
        assert!(error.to_string().contains(".private = true`"), "{error}");
    }
    assert!(other.seen().is_empty(), "the other server was asked");
    for realm in ["file:///etc/passwd", "x", "http://u:p@1.1.1.1/", "ftp://1.1.1.1/"] {
        fake.demand(&[format!("Bearer realm=\"{realm}\"")], &["Bearer t"]);
        let client = client(&[&fake]);
        let error = client.resolve(&reference(&fake, "team/app:1"), bob()).await.unwrap_err();
        assert!(matches!(error, Error::Url { .. }), "{realm}: {error}");
    }
}

#[tokio::test]
async fn realm_that_the_operator_named_is_asked() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    Sample::of(b"layer").push(&fake, "team/app", "1");
    fake.demand(&[format!("Bearer realm=\"{}\"", other.url("/token"))], &["Bearer t"]);
    other.token(r#"{"token": "t"}"#, None);
    let client = client(&[&fake, &other]);
    client.resolve(&reference(&fake, "team/app:1"), bob()).await.unwrap();
    assert_eq!(other.seen().len(), 1);
}

#[tokio::test]
async fn redirect_to_an_unnamed_private_address_is_refused() {
    let (fake, other) = (Fake::start().await, Fake::start().await);
    let sample = Sample::of(b"layer");
    sample.push(&fake, "team/app", "1");
    other.put_blob(b"layer");
    for to in [
        other.url("/storage/x"),
        other.url("/x").replace("127.0.0.1", "localhost"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://[::ffff:10.0.0.1]/".to_owned(),
    ] {
        fake.fault(sample.layer_digest(), Fault::Redirect(307, to.clone()));
        let error = pull(&client(&[&fake]), &fake).await.unwrap_err();
        assert!(matches!(error, Error::PrivateAddress { .. }), "{to}: {error}");
    }
    fake.fault(sample.layer_digest(), Fault::Redirect(302, "gopher://1.1.1.1/".to_owned()));
    let error = pull(&client(&[&fake]), &fake).await.unwrap_err();
    assert!(matches!(error, Error::Url { .. }), "{error}");
    assert!(other.seen().is_empty(), "the other server was asked");
}

#[tokio::test]
async fn other_origin_of_a_redirect_sees_no_credentials() {
    let (fake, storage) = (Fake::start().await, Fake::start().await);
    let sample = Sample::large();
    sample.push(&fake, "team/app", "1");
    storage.put_blob(&sample.layers[0]);
    fake.demand(&["Basic".to_owned()], &["Basic Ym9iOmh1bnRlcjIy"]);
    let to = storage.url(&format!("/storage/{}?signature=secret", sample.layer_digest()));
    fake.fault(sample.layer_digest(), Fault::Redirect(307, to));
    let client = client(&[&fake, &storage]);
    let resolved = client.resolve(&reference(&fake, "team/app:1"), bob()).await.unwrap();
    let image = client.image(&resolved).await.unwrap();
    assert_eq!(layers(&image).await.unwrap(), sample.layers);
    let seen = storage.seen();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].headers.contains_key("authorization"), "{:?}", seen[0].headers);
    assert!(!seen[0].headers.contains_key("referer"), "{:?}", seen[0].headers);
    // A storage that asks for credentials gets none, and its URL's query is in no error.
    storage.demand(&["Basic".to_owned()], &["x"]);
    let error = layers(&client.image(&resolved).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::AccessDenied { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("signature"), "{error}");
    assert!(storage.seen().iter().all(|seen| !seen.headers.contains_key("authorization")));
}

#[tokio::test]
async fn redirects_end_after_five() {
    let fake = Fake::start().await;
    let sample = Sample::of(b"layer");
    sample.push(&fake, "team/app", "1");
    let own = fake.url(&format!("/v2/team/app/blobs/{}", sample.layer_digest()));
    fake.fault(sample.layer_digest(), Fault::Redirect(307, own));
    let error = pull(&client(&[&fake]), &fake).await.unwrap_err();
    assert!(matches!(error, Error::Url { what: "redirect", .. }), "{error}");
    let asked = fake.taken().iter().filter(|one| one.contains("/blobs/")).count();
    // The configuration is one more.
    assert_eq!(asked, 1 + 1 + 5);
}

#[tokio::test]
async fn registry_at_a_private_address_needs_the_operators_permission() {
    let fake = Fake::start().await;
    Sample::of(b"layer").push(&fake, "team/app", "1");
    let mut settings = settings(&[&fake]);
    settings.registries.get_mut(&fake.host()).unwrap().private = false;
    let error = pull(&Client::new(settings).unwrap(), &fake).await.unwrap_err();
    assert!(matches!(error, Error::PrivateAddress { .. }), "{error}");
    let none = Client::new(registry::Settings::default()).unwrap();
    let error = none.resolve(&reference(&fake, "team/app:1"), None).await.unwrap_err();
    assert!(matches!(error, Error::PrivateAddress { .. }), "{error}");
    let port = fake.host().replace("127.0.0.1", "localhost");
    let error = none.resolve(&format!("{port}/a").parse().unwrap(), None).await.unwrap_err();
    assert!(matches!(error, Error::PrivateAddress { .. }), "{error}");
    assert!(fake.seen().is_empty());
}
