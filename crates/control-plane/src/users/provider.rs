//! Client of sign-in providers: GitHub, or any provider of OpenID Connect. It finds their endpoints
//! and reads the identity that their tokens prove.

use anyhow::Context;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse,
    BasicTokenType,
};
use oauth2::{
    AuthUrl, ClientId, ClientSecret, ExtraTokenFields, RedirectUrl, StandardRevocableToken,
    StandardTokenResponse, TokenResponse, TokenUrl,
};
use serde::{Deserialize, Serialize};

/// Name of GitHub among the providers.
pub(super) const GITHUB: &str = "github";
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
pub(super) struct Endpoints {
    authorize: String,
    token: String,
    /// URL of GitHub's API.
    api: String,
    /// URL of the keys and name of the issuer, for OpenID Connect.
    keys: String,
    issuer: String,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct IdToken {
    id_token: Option<String>,
}
impl ExtraTokenFields for IdToken {}

pub(super) type Tokens = StandardTokenResponse<IdToken, BasicTokenType>;
pub(super) type Client = oauth2::Client<
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
pub(super) struct ProviderIdentity {
    pub subject: String,
    pub name: String,
    /// E-mail address that the provider has verified.
    pub email: Option<String>,
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
    pub(super) async fn endpoints(&self, http: &reqwest::Client) -> anyhow::Result<Endpoints> {
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
            .context("cannot read the provider's configuration")?;
        anyhow::ensure!(
            known.issuer.trim_end_matches('/') == url,
            "the issuer in the provider's configuration differs from its URL"
        );
        Ok(Endpoints {
            authorize: known.authorization_endpoint,
            token: known.token_endpoint,
            api: String::new(),
            keys: known.jwks_uri,
            issuer: known.issuer,
        })
    }

    pub(super) fn client(&self, at: &Endpoints, redirect: String) -> anyhow::Result<Client> {
        Ok(oauth2::Client::new(ClientId::new(self.client_id.clone()))
            .set_client_secret(ClientSecret::new(self.client_secret.clone()))
            .set_auth_uri(AuthUrl::new(at.authorize.clone())?)
            .set_token_uri(TokenUrl::new(at.token.clone())?)
            .set_redirect_uri(RedirectUrl::new(redirect)?))
    }

    /// Returns the identity of the user whom the tokens belong to.
    pub(super) async fn identity(
        &self,
        http: &reqwest::Client,
        at: &Endpoints,
        tokens: &Tokens,
        nonce: &str,
    ) -> anyhow::Result<ProviderIdentity> {
        if self.name == GITHUB {
            return github(http, &at.api, tokens.access_token().secret()).await;
        }
        let token = tokens
            .extra_fields()
            .id_token
            .as_deref()
            .context("the provider's answer has no id_token")?;
        let keys: JwkSet =
            get(http, &at.keys, None).await.context("cannot read the provider's keys")?;
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
    anyhow::ensure!(
        ALGORITHMS.contains(&head.alg),
        "the id_token is signed with {:?}, which is not accepted",
        head.alg
    );
    let key = match &head.kid {
        Some(kid) => keys.find(kid),
        None => keys.keys.first().filter(|_| keys.keys.len() == 1),
    };
    let key =
        DecodingKey::from_jwk(key.context("the id_token's key is not a key of the provider")?)?;
    let mut rules = Validation::new(head.alg);
    rules.set_issuer(&[issuer]);
    rules.set_audience(&[client]);
    rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let claims = decode::<Claims>(token, &key, &rules)?.claims;
    anyhow::ensure!(
        claims.nonce.as_deref() == Some(nonce),
        "the id_token belongs to another sign-in"
    );
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
pub(super) async fn carried(
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

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

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
