//! Uploads of build files by E2B's clients, which send no key with them. The address is signed: over
//! team, template, hash and expiry.

use super::names;
use crate::app::App;
use crate::auth::Caller;
use crate::auth::origin::{FORWARDED_HOST, Peer};
use crate::build_files;
use crate::db;
use crate::error::{Error, Result};
use crate::http::builds::content_length;
use crate::http::extract::{Path, Query};
use crate::policy::Action;
use crate::templates;
use axum::Json;
use axum::extract::{FromRequestParts, Request, State};
use hmac::{Hmac, KeyInit, Mac};
use http::request::Parts;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use time::OffsetDateTime;
use types::{TeamId, TemplateId, hex};

/// Seconds within which an upload must begin.
const VALID: i64 = 30 * 60;

/// Scheme and host of the platform as the client sees it.
pub(super) struct Seen(String);

impl FromRequestParts<Arc<App>> for Seen {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        let peer = parts.extensions.get::<Peer>().copied();
        let proxied = peer.is_some_and(Peer::is_proxy);
        let text = |name| parts.headers.get_all(name).iter().next_back()?.to_str().ok();
        let forwarded = text(FORWARDED_HOST).filter(|_| proxied);
        let forwarded = forwarded.and_then(|hosts| hosts.rsplit(',').next()).map(str::trim);
        let own = text(header::HOST).or_else(|| parts.uri.authority().map(|host| host.as_str()));
        let host = forwarded.or(own).unwrap_or_else(|| app.public.authority());
        // The host goes into an address, so it must be one.
        let host = host.parse::<http::uri::Authority>().ok().filter(|h| !h.as_str().contains('@'));
        let host = host.ok_or_else(|| Error::invalid("Host", "must be a host name"))?;
        let by_tls = peer.is_some_and(|peer| peer.came_by_tls(&parts.headers, &parts.extensions));
        // A proxy that ends TLS for the public name may not say so.
        let scheme = if by_tls || app.public.is_https_of(host.as_str()) { "https" } else { "http" };
        Ok(Self(format!("{scheme}://{host}")))
    }
}

#[derive(Serialize)]
pub(super) struct Answer {
    present: bool,
    url: String,
}

/// Tells whether the files are there, and the address to send them to.
pub(super) async fn ask(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((id, hash)): Path<(String, String)>,
    Seen(base): Seen,
) -> Result<(StatusCode, Json<Answer>)> {
    build_files::check_hash(&hash)?;
    let template = templates::own(&app, caller, &names::plain(&id), Action::CapsulesAdmin).await?;
    let found = build_files::find(&app, caller.team, Some(&template), &hash).await?;
    let ends = OffsetDateTime::now_utc().unix_timestamp() + VALID;
    let signature = sign(&app.upload_secret, caller.team, template.id, &hash, ends);
    let path = format!("/templates/{}/files/{hash}", template.id);
    let url = format!("{base}{path}?team={}&expires={ends}&signature={signature}", caller.team);
    Ok((StatusCode::CREATED, Json(Answer { present: found.is_some(), url })))
}

#[derive(Deserialize)]
pub(super) struct Signed {
    team: String,
    expires: i64,
    signature: String,
}

/// Takes files at a signed address.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path((id, hash)): Path<(String, String)>,
    Query(signed): Query<Signed>,
    request: Request,
) -> Result<StatusCode> {
    let wrong = || Error::BadSignature("invalid signature");
    let team: TeamId = signed.team.parse().map_err(|_| wrong())?;
    let id: TemplateId = id.parse().map_err(|_| wrong())?;
    let wanted = sign(&app.upload_secret, team, id, &hash, signed.expires);
    if !bool::from(signed.signature.as_bytes().ct_eq(wanted.as_bytes())) {
        return Err(wrong());
    }
    if signed.expires < OffsetDateTime::now_utc().unix_timestamp() {
        return Err(Error::BadSignature("signature is already expired"));
    }
    // No key came with the request, so nobody has checked that the team still exists.
    if db::teams::slug(&app.db, team).await?.is_none() {
        return Err(Error::NotFound("template"));
    }
    let reference = templates::read_name("template", &id.to_string())?;
    let template = templates::find_template(&app, team, &reference).await?;
    let template = template.filter(|found| found.team_id == team);
    let template = template.ok_or(Error::NotFound("template"))?;
    let length = content_length(request.headers())?;
    let body = request.into_body();
    build_files::put(&app, team, Some(&template), &hash, length, body).await?;
    Ok(StatusCode::OK)
}

/// Signs an upload. No part can hold the separator.
fn sign(secret: &[u8], team: TeamId, template: TemplateId, hash: &str, ends: i64) -> String {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return String::new() };
    mac.update(format!("{team}\n{template}\n{hash}\n{ends}").as_bytes());
    hex::encode(&mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_covers_every_part() {
        let (team, template) = (TeamId::new(), TemplateId::new());
        let signed = sign(b"s", team, template, "ab", 1);
        assert_eq!(signed, sign(b"s", team, template, "ab", 1));
        assert_eq!(signed.len(), 64);
        for other in [
            sign(b"t", team, template, "ab", 1),
            sign(b"s", TeamId::new(), template, "ab", 1),
            sign(b"s", team, TemplateId::new(), "ab", 1),
            sign(b"s", team, template, "ac", 1),
            sign(b"s", team, template, "ab", 2),
        ] {
            assert_ne!(signed, other);
        }
    }
}
