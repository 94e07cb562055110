//! Enrolment of hosts: a registration token first, then credentials that the host renews by itself.
//!
//! The host makes its key and keeps it. To get credentials, the holder of a registration token must
//! also answer at the host's address with that key. If the answer to a refresh is lost, the host
//! repeats the request with the same token. A token that comes back after the use of its successor
//! was stolen or copied, and ends the enrolment.

use super::jwt::{Enrolled, LIFE};
use crate::app::App;
use crate::audit::{Actor, Entry, Principal};
use crate::db;
use crate::db::host_tokens::{Kind, Token};
use crate::db::hosts::Cert;
use crate::db::makers::Maker;
use crate::error::{Error, Result};
use crate::hosts::tls::{CertStore, is_loopback};
use crate::secret::{hash, random_hex};
use http::uri::Authority;
use rustls::pki_types::ServerName;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use types::{HostId, PLATFORM_TEAM, TeamId, names};

/// Lifetime of a registration token.
const REGISTRATION: Duration = Duration::from_secs(3600);
/// Lifetime of a refresh token.
const REFRESH: Duration = Duration::from_secs(60 * 24 * 3600);
/// Time limit for a host to prove its key.
const PROOF: Duration = Duration::from_secs(10);
/// Longest text in a host's specification, in bytes, and the most templates.
const WORD_MAX: usize = 64;
const TEMPLATES_MAX: usize = 1000;
/// Most tags of a host.
const TAGS_MAX: usize = 32;

/// Adds a host, and returns its registration token.
pub(crate) async fn invite(app: &App, wanted: api::NewHost, by: Actor) -> Result<api::HostToken> {
    let id = HostId::new();
    let name = wanted.name.unwrap_or_else(|| id.to_string());
    names::check_name("name", &name)?;
    check_tags(&wanted.tags)?;
    let wrong = |_| Error::invalid("team_id", "is not a team id");
    let team = wanted.team_id.map(|id| id.parse::<TeamId>().map_err(wrong)).transpose()?;
    let mut transaction = app.db.begin().await?;
    let maker = db::makers::of(&mut transaction, by).await?;
    if let Some(team) = team
        && !db::teams::hold(&mut *transaction, team).await?
    {
        return Err(Error::NotFound("team"));
    }
    if !db::hosts::insert(&mut transaction, id, team, &name, &wanted.tags).await? {
        return Err(Error::Conflict("a host with this name exists".to_owned()));
    }
    let token = give_registration(&mut transaction, id, maker).await?;
    let entry = Entry::new(PLATFORM_TEAM, by, "host.create", id).with(json!({ "name": name }));
    db::audit::write(&mut *transaction, &entry).await?;
    transaction.commit().await?;
    invitation(app, id, token).await
}

/// Returns a new registration token for a known host, for example after the loss of its disk.
pub(crate) async fn invite_again(app: &App, id: HostId, by: Actor) -> Result<api::HostToken> {
    let mut transaction = app.db.begin().await?;
    let maker = db::makers::of(&mut transaction, by).await?;
    if !db::hosts::lock(&mut transaction, id).await? {
        return Err(Error::NotFound("host"));
    }
    db::host_tokens::remove(&mut transaction, id, Kind::Registration).await?;
    let token = give_registration(&mut transaction, id, maker).await?;
    let entry = Entry::new(PLATFORM_TEAM, by, "host.reenrol", id);
    db::audit::write(&mut *transaction, &entry).await?;
    transaction.commit().await?;
    invitation(app, id, token).await
}

/// Makes a registration token. The token ends with its maker's right to make one.
async fn give_registration(db: &mut PgConnection, id: HostId, maker: Maker) -> Result<String> {
    let token = random_hex(32);
    let (kind, life) = (Kind::Registration, REGISTRATION.as_secs_f64());
    let hash = hash(&token);
    db::host_tokens::insert(&mut *db, id, kind, &hash, None, life).await?;
    db::host_tokens::set_maker(db, &hash, maker).await?;
    Ok(token)
}

async fn invitation(app: &App, id: HostId, token: String) -> Result<api::HostToken> {
    let host = super::lifecycle::get(app, id).await?;
    let expires_at = OffsetDateTime::now_utc() + REGISTRATION;
    Ok(api::HostToken { host, registration_token: token, expires_at })
}

/// Checks the tags by which capsules choose a host.
pub(crate) fn check_tags(tags: &[String]) -> Result<()> {
    if tags.len() > TAGS_MAX {
        return Err(Error::invalid("tags", format!("must have at most {TAGS_MAX} tags")));
    }
    Ok(tags.iter().try_for_each(|tag| names::check_name("tags", tag))?)
}

/// Checks a host's description of itself. The host may belong to a team, so it is not trusted.
pub(crate) fn check_specs(specs: &api::HostSpecs) -> Result<()> {
    if !specs.isolation.is_empty() {
        specs.isolation.parse::<types::Isolation>()?;
    }
    let words = [&specs.arch, &specs.driver, &specs.accelerator, &specs.version];
    if words.iter().any(|word| word.len() > WORD_MAX) || specs.templates.len() > TEMPLATES_MAX {
        return Err(Error::invalid("specs", "are too large"));
    }
    Ok(specs.templates.iter().try_for_each(|name| names::check_name("specs.templates", name))?)
}

/// Shares the templates of a host with all teams, unless the host belongs to a team.
pub(crate) async fn share_templates(app: &App, host: HostId, specs: &api::HostSpecs) -> Result<()> {
    let found = db::hosts::find(&app.db, host).await?;
    if found.is_some_and(|host| host.team_id.is_none()) {
        for name in &specs.templates {
            db::templates::share(&app.db, name).await?;
        }
    }
    Ok(())
}

/// Enrols a host that holds a registration token and answers at its address with its key.
pub(crate) async fn register(
    app: &App,
    by: Actor,
    wanted: api::RegisterHost,
) -> Result<api::HostCredentials> {
    let (kind, hashed) = (Kind::Registration, hash(&wanted.token));
    let token = find(app, by, kind, &hashed)
        .await?
        .ok_or_else(|| Error::InvalidToken("the registration token"))?;
    let host = token.host_id;
    check_specs(&wanted.specs)?;
    let address = wanted.address.parse::<Authority>().ok();
    let address = address.filter(|at| at.port_u16().is_some() && !at.as_str().contains('@'));
    let address =
        address.ok_or_else(|| Error::invalid("address", "must have the form 10.0.0.7:8001"))?;
    // A client that repeats its request after a lost answer has the same key, or the same address.
    let key = wanted.csr_pem.as_deref().map(public_key).transpose()?;
    let with = Sha256::digest(key.as_deref().unwrap_or(address.as_str().as_bytes()));
    if token.bound_to.as_deref().is_some_and(|bound| bound != with.as_slice()) {
        return Err(Error::InvalidToken("the registration token"));
    }
    if let Some(other) = db::hosts::at_address(&app.db, address.as_str(), host).await? {
        let message =
            format!("{other} already has the address {address}; delete it, or enrol it again");
        return Err(Error::Conflict(message));
    }
    let cert = match (&app.cert_store, &wanted.csr_pem, key) {
        (None, ..) => {
            prove_plain(app, &address).await?;
            None
        }
        (Some(_), None, _) | (Some(_), _, None) => {
            return Err(Error::invalid(
                "csr_pem",
                "is required, since this platform uses certificates",
            ));
        }
        (Some(cert_store), Some(request), Some(key)) => {
            prove(cert_store, &address, &key).await?;
            Some(cert_store.sign(request, host, address.host())?)
        }
    };
    let mut transaction = app.db.begin().await?;
    let there = db::hosts::lock(&mut transaction, host).await?;
    // Another request may have used the token while the host proved its key.
    let found = db::host_tokens::find_in(&mut transaction, kind, &hashed).await?;
    let token =
        found.filter(|token| there && token.bound_to.as_deref().is_none_or(|b| b == &*with));
    let token = token.ok_or_else(|| Error::InvalidToken("the registration token"))?;
    db::host_tokens::used(&mut transaction, &token, &with).await?;
    let known = known(cert.as_ref());
    let enrolment = db::hosts::enrol(&mut transaction, host, address.as_str(), &known).await?;
    let load = api::HostLoad::default();
    db::hosts::heard(&mut *transaction, host, enrolment, &wanted.specs, &load).await?;
    db::host_tokens::remove(&mut transaction, host, Kind::Refresh).await?;
    let refresh_token = give_refresh(&mut transaction, host, None).await?;
    let what = json!({ "address": address.as_str(), "enrolment": enrolment });
    enrolment_entry(&mut transaction, "host.enrol", host, what).await?;
    transaction.commit().await?;
    tracing::info!(%host, %address, enrolment, "enrolled a host");
    share_templates(app, host, &wanted.specs).await?;
    // Open connections lead to the host's former identity.
    app.agents.forget(host);
    app.fleet.read().await?;
    credentials(app, Enrolled { host, enrolment }, refresh_token, cert)
}

/// Gives a host new credentials for its refresh token. A new key must answer at the host's
/// address, as at a registration: a copy of the token alone gets no certificate.
pub(crate) async fn refresh(
    app: &App,
    by: Actor,
    wanted: api::RefreshHost,
) -> Result<api::HostCredentials> {
    let (kind, hashed) = (Kind::Refresh, hash(&wanted.refresh_token));
    let invalid = || Error::InvalidToken("the refresh token");
    let found = find(app, by, kind, &hashed).await?.ok_or_else(invalid)?;
    let host = found.host_id;
    let address = db::hosts::find(&app.db, host).await?.map(|row| row.address);
    let address = address.and_then(|address| address.parse::<Authority>().ok());
    let address = address.ok_or_else(invalid)?;
    // A token that was used twice ends the enrolment below, whoever sends it.
    if let (Some(cert_store), false) = (&app.cert_store, found.superseded) {
        let request = wanted.csr_pem.as_deref();
        let missing = "is required, since this platform uses certificates";
        let request = request.ok_or_else(|| Error::invalid("csr_pem", missing))?;
        prove(cert_store, &address, &public_key(request)?).await?;
    }
    let mut transaction = app.db.begin().await?;
    db::hosts::lock(&mut transaction, host).await?;
    let found = db::host_tokens::find_in(&mut transaction, kind, &hashed).await?;
    let token = found.ok_or_else(invalid)?;
    if token.superseded {
        db::hosts::disown(&mut transaction, host).await?;
        let why = json!({ "error": "a refresh token was used twice" });
        enrolment_entry(&mut transaction, "host.disown", host, why).await?;
        transaction.commit().await?;
        app.agents.forget(host);
        app.fleet.tell();
        tracing::error!(%host, "a refresh token was used twice; the host must enrol again");
        return Err(invalid());
    }
    let row = db::hosts::find(&mut *transaction, host).await?.ok_or_else(invalid)?;
    if row.address != address.as_str() {
        // The host enrolled elsewhere while its new key was looked for.
        return Err(invalid());
    }
    let cert = match (&app.cert_store, &wanted.csr_pem) {
        (Some(cert_store), Some(request)) => {
            Some(cert_store.sign(request, host, address.host())?)
        }
        (Some(_), None) => return Err(invalid()),
        (None, _) => None,
    };
    let enrolment =
        db::hosts::renew(&mut transaction, host, &known(cert.as_ref()), !token.used).await?;
    db::host_tokens::used(&mut transaction, &token, &[]).await?;
    let refresh_token = give_refresh(&mut transaction, host, Some(&token)).await?;
    transaction.commit().await?;
    app.fleet.read().await?;
    credentials(app, Enrolled { host, enrolment }, refresh_token, cert)
}

/// Finds a host's token. Anybody may send one, so the query needs a place.
async fn find(app: &App, by: Actor, kind: Kind, hashed: &[u8; 32]) -> Result<Option<Token>> {
    let _place = app.load.lookup(by.from).await?;
    Ok(db::host_tokens::find(&app.db, kind, hashed).await?)
}

/// Writes an audit entry about a host, with the host as the actor.
async fn enrolment_entry(
    db: &mut PgConnection,
    action: &'static str,
    host: HostId,
    what: serde_json::Value,
) -> Result<()> {
    let by = Actor { principal: Principal::Host(host), ..Actor::SYSTEM };
    Ok(db::audit::write(db, &Entry::new(PLATFORM_TEAM, by, action, host).with(what)).await?)
}

async fn give_refresh(db: &mut PgConnection, id: HostId, of: Option<&Token>) -> Result<String> {
    let token = random_hex(32);
    let (kind, parent) = (Kind::Refresh, of.map(|token| token.id));
    db::host_tokens::insert(db, id, kind, &hash(&token), parent, REFRESH.as_secs_f64()).await?;
    Ok(token)
}

fn known(cert: Option<&pki::Leaf>) -> Cert {
    let fingerprint = cert.map(|cert| cert.fingerprint.clone());
    Cert { fingerprint, expires_at: cert.map(|cert| cert.expires_at) }
}

fn credentials(
    app: &App,
    who: Enrolled,
    refresh_token: String,
    cert: Option<pki::Leaf>,
) -> Result<api::HostCredentials> {
    let trust =
        app.cert_store.as_ref().map(|cert_store| cert_store.authority.trust().pem().to_owned());
    Ok(api::HostCredentials {
        host_id: who.host.to_string(),
        jwt: app.signer.sign(who)?,
        refresh_token,
        cert_pem: cert.map(|cert| cert.cert_pem),
        ca_cert_pem: trust,
        renew_in: LIFE.as_secs() * 2 / 3,
    })
}

fn public_key(request: &str) -> Result<Vec<u8>> {
    let key = pki::public_key_of_request(request);
    key.ok_or_else(|| Error::invalid("csr_pem", "is not a valid certificate signing request"))
}

/// Checks that an address answers with a key.
async fn prove(cert_store: &CertStore, address: &Authority, key: &[u8]) -> Result<()> {
    let no = |why: String| Error::invalid("address", format!("cannot be verified: {why}"));
    let host = address.host().trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|e| no(e.to_string()))?;
    let config = cert_store.witness()?;
    let shown = async {
        let tcp = TcpStream::connect((host, address.port_u16().unwrap_or(0))).await?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let certs = tls.get_ref().1.peer_certificates().unwrap_or_default();
        Ok::<_, std::io::Error>(certs.first().and_then(|cert| pki::public_key(cert)))
    };
    let shown = tokio::time::timeout(PROOF, shown).await;
    match shown.map_err(|_| no("the host does not answer there".to_owned()))? {
        Ok(shown) if shown.as_deref() == Some(key) => Ok(()),
        Ok(_) => Err(no("the server there has another key".to_owned())),
        Err(error) => Err(no(error.to_string())),
    }
}

/// Checks that an address answers, on a platform without certificates. Only loopback is trusted
/// unless plain HTTP is allowed, since only this machine answers there.
async fn prove_plain(app: &App, address: &Authority) -> Result<()> {
    let host = address.host().trim_matches(['[', ']']);
    if !app.plaintext && !is_loopback(host) {
        let message = "must be a loopback address, since this platform has no certificates; set \
                       WRENN_CA_CERT and WRENN_CA_KEY";
        return Err(Error::invalid("address", message));
    }
    let dialling = TcpStream::connect((host, address.port_u16().unwrap_or(0)));
    match tokio::time::timeout(PROOF, dialling).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Error::invalid("address", "does not answer")),
    }
}
