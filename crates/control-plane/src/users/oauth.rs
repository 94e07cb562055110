//! Sign-in elsewhere: GitHub, or any provider of OpenID Connect, by the code flow with PKCE. The
//! state is good once, and bound to the browser by a cookie. When a provider is added, the state is
//! also bound to the session that asked for it. A sign-in never takes over an account of the same
//! e-mail. The account's owner adds the provider after signing in.

use super::{Entered, Origin, check_email, note, open};
use crate::app::App;
use crate::audit::Actor;
use crate::auth::locked_rights::lock_user;
use crate::auth::{Session, hash, random_hex};
use crate::db;
use crate::db::sessions::SignIn;
use crate::db::users::User;
use crate::error::{Error, Result};
use anyhow::Context;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    BasicTokenType,
};
use oauth2::{
    AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, ExtraTokenFields,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope, StandardRevocableToken,
    StandardTokenResponse, TokenResponse, TokenUrl,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use std::time::Duration;
use types::{SessionId, UserId};

/// Longest time of a sign-in at the provider.
const PATIENCE: Duration = Duration::from_secs(600);
/// Message for a provider that is added by another browser, or after a sign-out.
const OTHER_SESSION: &str = "the provider is added in the session that asked for it alone";
/// Name of GitHub among the providers.
const GITHUB: &str = "github";
/// Accepted signature algorithms of tokens.
const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// A sign-in provider, with this platform's credentials there.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Name in paths: `github`, or the configured name.
    pub name: String,
    /// URL of GitHub, or of the issuer.
    pub url: String,
    pub client_id: String,
    pub client_secret: String,
}

/// URLs of a provider's services.
struct Endpoints {
    authorize: String,
    token: String,
    /// URL of GitHub's API.
    api: String,
    /// URL of the keys and name of the issuer, for OpenID Connect.
    keys: String,
    issuer: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct IdToken {
    id_token: Option<String>,
}
impl ExtraTokenFields for IdToken {}

type Tokens = StandardTokenResponse<IdToken, BasicTokenType>;
type Client = oauth2::Client<
    BasicErrorResponse,
    Tokens,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    oauth2::EndpointSet,
    oauth2::EndpointNotSet,
    oauth2::EndpointNotSet,
    oauth2::EndpointNotSet,
    oauth2::EndpointSet,
>;

/// Identity of a user at a provider.
#[derive(Debug, PartialEq, Eq)]
struct ProviderIdentity {
    subject: String,
    name: String,
    /// E-mail address that the provider has verified.
    email: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Discovery {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
}

#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    nonce: Option<String>,
    name: Option<String>,
    email: Option<String>,
    #[serde(default)]
    email_verified: bool,
}

impl Provider {
    async fn endpoints(&self, http: &reqwest::Client) -> anyhow::Result<Endpoints> {
        let url = self.url.trim_end_matches('/');
        if self.name == GITHUB {
            let own = url == "https://github.com";
            let api =
                if own { "https://api.github.com".to_owned() } else { format!("{url}/api/v3") };
            return Ok(Endpoints {
                authorize: format!("{url}/login/oauth/authorize"),
                token: format!("{url}/login/oauth/access_token"),
                api,
                keys: String::new(),
                issuer: String::new(),
            });
        }
        let known: Discovery = get(http, &format!("{url}/.well-known/openid-configuration"), None)
            .await
            .context("asking the provider what it offers")?;
        anyhow::ensure!(known.issuer.trim_end_matches('/') == url, "another issuer answers");
        Ok(Endpoints {
            authorize: known.authorization_endpoint,
            token: known.token_endpoint,
            api: String::new(),
            keys: known.jwks_uri,
            issuer: known.issuer,
        })
    }

    fn client(&self, at: &Endpoints, redirect: String) -> anyhow::Result<Client> {
        Ok(oauth2::Client::new(ClientId::new(self.client_id.clone()))
            .set_client_secret(ClientSecret::new(self.client_secret.clone()))
            .set_auth_uri(AuthUrl::new(at.authorize.clone())?)
            .set_token_uri(TokenUrl::new(at.token.clone())?)
            .set_redirect_uri(RedirectUrl::new(redirect)?))
    }

    /// Returns the identity of the user whom the tokens belong to.
    async fn identity(
        &self,
        http: &reqwest::Client,
        at: &Endpoints,
        tokens: &Tokens,
        nonce: &str,
    ) -> anyhow::Result<ProviderIdentity> {
        if self.name == GITHUB {
            return github(http, &at.api, tokens.access_token().secret()).await;
        }
        let token = tokens.extra_fields().id_token.as_deref().context("there is no id_token")?;
        let keys: JwkSet = get(http, &at.keys, None).await.context("getting its keys")?;
        checked(token, &keys, &at.issuer, &self.client_id, nonce)
    }
}

/// Checks an OpenID Connect token and returns its identity. Pure.
fn checked(
    token: &str,
    keys: &JwkSet,
    issuer: &str,
    client: &str,
    nonce: &str,
) -> anyhow::Result<ProviderIdentity> {
    let head = decode_header(token)?;
    anyhow::ensure!(ALGORITHMS.contains(&head.alg), "the id_token is signed by {:?}", head.alg);
    let key = match &head.kid {
        Some(kid) => keys.find(kid),
        None => keys.keys.first().filter(|_| keys.keys.len() == 1),
    };
    let key = DecodingKey::from_jwk(key.context("the id_token's key is none of the provider's")?)?;
    let mut rules = Validation::new(head.alg);
    rules.set_issuer(&[issuer]);
    rules.set_audience(&[client]);
    rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims = decode::<Claims>(token, &key, &rules)?.claims;
    anyhow::ensure!(claims.nonce.as_deref() == Some(nonce), "the id_token is for another sign-in");
    let email = claims.email.filter(|_| claims.email_verified);
    Ok(ProviderIdentity { subject: claims.sub, name: claims.name.unwrap_or_default(), email })
}

async fn github(
    http: &reqwest::Client,
    api: &str,
    token: &str,
) -> anyhow::Result<ProviderIdentity> {
    #[derive(Deserialize)]
    struct Account {
        id: u64,
        login: String,
        name: Option<String>,
    }
    #[derive(Deserialize)]
    struct Email {
        email: String,
        primary: bool,
        verified: bool,
    }
    let account: Account = get(http, &format!("{api}/user"), Some(token)).await?;
    let emails: Vec<Email> = get(http, &format!("{api}/user/emails"), Some(token)).await?;
    let primary = emails.into_iter().find(|email| email.primary && email.verified);
    let name = account.name.filter(|name| !name.is_empty()).unwrap_or(account.login);
    Ok(ProviderIdentity { subject: account.id.to_string(), name, email: primary.map(|e| e.email) })
}

async fn get<T: serde::de::DeserializeOwned>(
    http: &reqwest::Client,
    url: &str,
    token: Option<&str>,
) -> anyhow::Result<T> {
    let mut request = http.get(url).header("accept", "application/json");
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Ok(request.send().await?.error_for_status()?.json().await?)
}

/// Sends the requests of the `oauth2` library.
async fn carried(
    http: reqwest::Client,
    request: oauth2::HttpRequest,
) -> std::result::Result<oauth2::HttpResponse, reqwest::Error> {
    let answer = http.execute(request.try_into()?).await?;
    let mut carried = http::Response::new(Vec::new());
    *carried.status_mut() = answer.status();
    *carried.headers_mut() = answer.headers().clone();
    *carried.body_mut() = answer.bytes().await?.to_vec();
    Ok(carried)
}

fn provider<'a>(app: &'a App, name: &str) -> Result<&'a Provider> {
    let found = app.accounts.providers.iter().find(|provider| provider.name == name);
    found.ok_or(Error::NotFound("provider"))
}

fn failed(error: &anyhow::Error) -> Error {
    tracing::warn!(error = format!("{error:#}"), "a sign-in elsewhere");
    Error::SignInFailed("the provider's sign-in failed; see the control plane's log".to_owned())
}

/// Begins a sign-in, or has a session's user add the provider. Returns the address for the browser
/// to visit, and the state for its cookie.
pub(crate) async fn begin(
    app: &App,
    name: &str,
    adds: Option<Session>,
) -> Result<(String, String)> {
    let provider = provider(app, name)?;
    let at = provider.endpoints(&app.http).await.map_err(|e| failed(&e))?;
    let client = provider.client(&at, redirect(app, name)).map_err(|e| failed(&e))?;
    let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
    let (state, nonce) = (random_hex(32), random_hex(16));
    let scopes: &[&str] = match name {
        GITHUB => &["read:user", "user:email"],
        _ => &["openid", "email", "profile"],
    };
    let (url, _) = client
        .authorize_url(|| CsrfToken::new(state.clone()))
        .add_scopes(scopes.iter().map(|scope| Scope::new((*scope).to_owned())))
        .set_pkce_challenge(challenge)
        .add_extra_param("nonce", nonce.clone())
        .url();
    let sign_in = SignIn {
        provider: name.to_owned(),
        verifier: verifier.secret().clone(),
        nonce,
        user_id: adds.map(|who| who.user.0),
        session_id: adds.map(|who| who.session.0),
    };
    let begun = db::sessions::begin(&app.db, &hash(&state), &sign_in, PATIENCE.as_secs_f64()).await;
    begun.map_err(|error| match error.as_database_error() {
        // The session has ended meanwhile, so its row is gone.
        Some(error) if error.is_foreign_key_violation() => Error::Unauthenticated,
        _ => error.into(),
    })?;
    Ok((url.to_string(), state))
}

fn redirect(app: &App, name: &str) -> String {
    format!("{}/v1/auth/oauth/{name}/callback", app.accounts.url)
}

/// Completes a sign-in, when the browser returns with a code and the state in its cookie. `shown`
/// is the session of its other cookie. A provider is added only in the session that asked for it.
pub(crate) async fn end(
    app: &App,
    origin: Origin,
    name: &str,
    (state, code): (&str, String),
    shown: Option<SessionId>,
) -> Result<Entered> {
    let provider = provider(app, name)?;
    let sign_in = db::sessions::take(&app.db, &hash(state)).await?;
    let sign_in = sign_in.filter(|sign_in| sign_in.provider == name);
    let sign_in = sign_in.ok_or(Error::InvalidToken("the sign-in's state"))?;
    let adds = match (sign_in.user_id, sign_in.session_id) {
        (None, _) => None,
        (Some(user), Some(session)) if shown == Some(SessionId(session)) => {
            let (user, session) = (UserId(user), SessionId(session));
            Some(Session { user, session, by: origin.by.user(user) })
        }
        (Some(_), _) => return Err(Error::SignInFailed(OTHER_SESSION.to_owned())),
    };
    let asked = async {
        let at = provider.endpoints(&app.http).await?;
        let client = provider.client(&at, redirect(app, name))?;
        let http = app.http.clone();
        let tokens = client
            .exchange_code(AuthorizationCode::new(code))
            .set_pkce_verifier(PkceCodeVerifier::new(sign_in.verifier))
            .request_async(&|request| carried(http.clone(), request))
            .await
            .context("exchanging the code")?;
        provider.identity(&app.http, &at, &tokens, &sign_in.nonce).await
    };
    let identity = asked.await.map_err(|e| failed(&e))?;
    enter(app, origin, name, identity, adds).await
}

fn refusal(why: &str) -> Error {
    Error::SignInFailed(why.to_owned())
}

/// Signs in the account of an identity: the account that has it, the one that adds it, or a new
/// one.
async fn enter(
    app: &App,
    origin: Origin,
    name: &str,
    identity: ProviderIdentity,
    adds: Option<Session>,
) -> Result<Entered> {
    let mut tx = app.db.begin().await?;
    // The user who adds a provider is locked first, as in every transaction.
    let adder = match adds {
        Some(who) => Some(lock_user(&mut tx, who).await?),
        None => None,
    };
    let known = db::users::by_identity(&mut *tx, name, &identity.subject).await?;
    let user = match (known, adder) {
        (Some(user), Some(adder)) if user.id != adder.id => {
            return Err(refusal("that account there belongs to another user"));
        }
        (Some(user), _) => user,
        (None, Some(adder)) => {
            let id = adder.id();
            if !db::users::add_identity(&mut *tx, id, name, &identity.subject).await? {
                return Err(refusal("you have an account of that provider already"));
            }
            let by = origin.by.user(id);
            note(&mut tx, by, "user.add_provider", id, json!({ "provider": name })).await?;
            adder
        }
        (None, None) => come(app, &mut tx, origin.by, name, &identity).await?,
    };
    let entered = open(&mut tx, &user, &origin).await?;
    let entered = entered.ok_or_else(|| refusal("the account is not active"))?;
    tx.commit().await?;
    Ok(entered)
}

/// Makes the account of a first-time user, or activates an account that waits for its owner. The
/// provider's verification of the e-mail counts as much as a mailed code.
async fn come(
    app: &App,
    tx: &mut PgConnection,
    by: Actor,
    name: &str,
    identity: &ProviderIdentity,
) -> Result<User> {
    let email = identity.email.as_deref().map(check_email).transpose()?;
    let email = email.ok_or_else(|| refusal("the provider vouches for no e-mail of yours"))?;
    db::users::lock_admins(&mut *tx).await?;
    let known = db::users::lock_by_email(&mut *tx, &email).await?;
    if known.as_ref().is_some_and(|user| user.status != "inactive") {
        return Err(refusal(
            "there is an account of this e-mail; sign in to it and add the provider",
        ));
    }
    if !super::welcome(app, tx, &email).await? {
        return Err(refusal("this platform takes new users by invitation"));
    }
    let name_there = crate::teams::check_title("name", &identity.name);
    let called = name_there.unwrap_or_else(|_| email.clone());
    let user = match known {
        Some(user) => user,
        None => {
            let entered = db::users::insert(&mut *tx, &email, &called).await?;
            let entered = entered.filter(|(user, _)| user.status == "inactive");
            entered.ok_or_else(|| refusal("there is an account of this e-mail; try again"))?.0
        }
    };
    let id = user.id();
    if !db::users::add_identity(&mut *tx, id, name, &identity.subject).await? {
        return Err(refusal("that account there belongs to another user"));
    }
    // The earlier sign-up with this e-mail may have been a stranger's.
    db::users::set_name(&mut *tx, id, &called).await?;
    super::settle(tx, id, &called, by.user(id)).await?;
    db::users::find(&mut *tx, id).await?.ok_or(Error::Unauthenticated)
}

/// Removes a provider from an account that has another way to sign in.
pub(crate) async fn remove(app: &App, who: Session, name: &str) -> Result<()> {
    let mut tx = app.db.begin().await?;
    let user = lock_user(&mut tx, who).await?;
    let known = db::users::identities(&mut *tx, who.user).await?;
    if user.password_hash.is_none() && known.len() < 2 {
        let message = "it is the only way into the account; set a password first";
        return Err(Error::Conflict(message.to_owned()));
    }
    if !db::users::remove_identity(&mut *tx, who.user, name).await? {
        return Err(Error::NotFound("provider"));
    }
    note(&mut tx, who.by, "user.remove_provider", who.user, json!({ "provider": name })).await?;
    tx.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode};

    const ISSUER: &str = "https://id.example";

    /// Makes a token with these claims, signed as `alg` says, and the keys that check it.
    fn signed(claims: &serde_json::Value, alg: Algorithm) -> (String, JwkSet) {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
        use base64::Engine;
        use base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let pkcs8 = pair.to_pkcs8v1().unwrap();
        let point = pair.public_key().as_ref();
        let coordinate = |at: &[u8]| URL_SAFE_NO_PAD.encode(at);
        let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "k", "alg": "ES256",
            "x": coordinate(&point[1..33]), "y": coordinate(&point[33..]) }] });
        let keys: JwkSet = serde_json::from_value(keys).unwrap();
        let key = if alg == Algorithm::HS256 {
            EncodingKey::from_secret(b"client")
        } else {
            EncodingKey::from_ec_der(pkcs8.as_ref())
        };
        let head = Header { kid: Some("k".to_owned()), ..Header::new(alg) };
        (encode(&head, claims, &key).unwrap(), keys)
    }

    #[test]
    fn id_token_of_another_issuer_client_time_or_nonce_is_refused() {
        let soon = time::OffsetDateTime::now_utc().unix_timestamp() + 600;
        let good = json!({ "iss": ISSUER, "aud": "client", "sub": "7", "exp": soon, "nonce": "n",
            "email": "A@example.com", "email_verified": true, "name": "A" });
        let check = |claims: &serde_json::Value, alg| {
            let (token, keys) = signed(claims, alg);
            checked(&token, &keys, ISSUER, "client", "n")
        };
        let identity = check(&good, Algorithm::ES256).unwrap();
        assert_eq!((identity.subject.as_str(), identity.name.as_str()), ("7", "A"));
        assert_eq!(identity.email.as_deref(), Some("A@example.com"));
        for (field, value) in [
            ("iss", json!("https://evil.example")),
            ("aud", json!("another")),
            ("exp", json!(soon - 4000)),
            ("nonce", json!("another")),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(check(&bad, Algorithm::ES256).is_err(), "{field}");
        }
        assert!(check(&good, Algorithm::HS256).is_err(), "signed with the client's own name");
        let mut unverified = good.clone();
        unverified["email_verified"] = false.into();
        assert_eq!(check(&unverified, Algorithm::ES256).unwrap().email, None);
        let (token, _) = signed(&good, Algorithm::ES256);
        let (_, others) = signed(&good, Algorithm::ES256);
        assert!(checked(&token, &others, ISSUER, "client", "n").is_err(), "another's key");
    }
}
