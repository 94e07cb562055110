//! Cookies in a real browser, with the API and capsules' pages below one domain, over TLS.

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Browser, Caddy, Driver, PASSWORD, Platform, Upstream, free_port};

const DOMAIN: &str = "capsules.test";

/// Serves a plain page, in which the test runs scripts.
fn page() -> Upstream {
    Upstream::start(|mut wire| {
        while wire.head().is_some() {
            wire.answer("200 OK", "content-type: text/html\r\n", b"<body>a capsule's page</body>");
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn cookie_tossing_by_capsule_page_does_not_affect_platform_session() {
    let port = free_port();
    let public = format!("https://{DOMAIN}:{port}");
    let vars = [("WRENN_DOMAINS", DOMAIN), ("WRENN_PUBLIC_URL", &public)];
    let platform = Platform::start(Driver::Fake, &vars).await;
    platform.user("victim@example.com").await;
    let attacker = platform.user("attacker@example.com").await;
    let guest = page();
    let body = json!({ "public_ports": [guest.port] });
    let id = attacker.create(&body).await;
    let caddy = Caddy::start(DOMAIN, port, platform.url());
    let mut browser = Browser::start(DOMAIN, caddy.address).await;

    // The victim signs in through a page of the platform's.
    browser.go(&format!("{public}/docs")).await;
    let log_in = format!(
        "fetch('/v1/auth/login', {{ method: 'POST', \
         headers: {{ 'content-type': 'application/json' }}, \
         body: JSON.stringify({{ email: 'victim@example.com', password: '{PASSWORD}' }}) }})\
         .then(answer => answer.status)"
    );
    assert_eq!(browser.run(&log_in).await, 200);
    let me = format!("{public}/v1/me");
    assert!(browser.go(&me).await.contains("victim@example.com"));

    // The attacker's page sets cookies for the whole domain, which the browser sends before the
    // victim's own.
    let theirs = format!("https://{}-{id}.{DOMAIN}:{port}/", guest.port);
    assert!(browser.go(&theirs).await.contains("a capsule's page"));
    let session = attacker.key();
    for name in ["wrenn-session", "__Host-wrenn-session", "wrenn-oauth", "__Host-wrenn-oauth"] {
        for path in ["/", "/v1", "/v1/me", "/v1/auth/oauth/corp"] {
            let toss = format!(
                "document.cookie = '{name}={session}; Domain={DOMAIN}; Path={path}; Secure'"
            );
            browser.run(&toss).await;
        }
    }
    let cookies = browser.cookies().await;
    let of = |wanted: &str| cookies.iter().filter(|(_, _, name)| name == wanted).count();
    assert_eq!(of("wrenn-session"), 4, "the browser takes these: {cookies:?}");
    assert_eq!((of("__Host-wrenn-session"), of("__Host-wrenn-oauth")), (1, 0), "{cookies:?}");

    // The victim is still signed in as themselves and, after signing out, is nobody.
    assert!(browser.go(&me).await.contains("victim@example.com"));
    let said: Value = serde_json::from_str(&browser.go(&me).await).unwrap();
    browser.go(&format!("{public}/docs")).await;
    let log_out = format!(
        "fetch('/v1/auth/logout', {{ method: 'POST', headers: {{ 'x-csrf-token': '{}' }} }})\
         .then(answer => answer.status)",
        said["csrf_token"].as_str().unwrap()
    );
    assert_eq!(browser.run(&log_out).await, 204);
    // Another replica learns of the sign-out within a second.
    let mut said = String::new();
    for _ in 0..50 {
        said = browser.go(&me).await;
        if said.contains("unauthorized") {
            break;
        }
    }
    assert!(said.contains("unauthorized"), "{said}");

    // A state that the attacker set begins no sign-in.
    let callback = format!("{public}/v1/auth/oauth/corp/callback?code=good&state={session}");
    assert!(browser.go(&callback).await.contains("invalid_token"));
    drop(browser);

    // Over TLS these cookie names mean nothing from any client, with or without a browser.
    let client = caddy.client(&[DOMAIN]);
    for name in ["wrenn-session", "Wrenn-Session"] {
        let ask = client.request(Method::GET, &me).header("cookie", format!("{name}={session}"));
        assert_eq!(ask.send().await.unwrap().status().as_u16(), 401, "{name}");
    }
    let own = format!("__Host-wrenn-session={session}");
    let ask = client.request(Method::GET, &me).header("cookie", own);
    assert_eq!(ask.send().await.unwrap().status().as_u16(), 200);
    drop(caddy);
    platform.finish();
}
