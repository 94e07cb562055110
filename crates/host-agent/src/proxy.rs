//! The data hop: `/proxy/{capsule}/{port}/…` to that port of the guest, streamed both ways,
//! with nothing held back and the path kept byte for byte.

use crate::capsule::manager::Manager;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use types::CapsuleId;

/// Headers that concern one hop alone (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Where a request is to go.
fn target(uri: &Uri) -> Option<(CapsuleId, Uri)> {
    let rest = uri.path_and_query()?.as_str().strip_prefix("/proxy/")?;
    let (capsule, rest) = rest.split_once('/')?;
    let (port, path) = rest.split_once('/').unwrap_or((rest, ""));
    let port: u16 = port.parse().ok().filter(|p| *p != 0)?;
    let guest = crate::network::plan::GUEST;
    let to = format!("http://{guest}:{port}/{path}").parse().ok()?;
    Some((capsule.parse().ok()?, to))
}

pub(crate) async fn forward(State(manager): State<Manager>, request: Request) -> Response {
    let Some((id, uri)) = target(request.uri()) else {
        return (StatusCode::BAD_REQUEST, "no such route").into_response();
    };
    let Some(guest) = manager.guest(id) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the capsule is not running").into_response();
    };
    let (mut head, body) = request.into_parts();
    head.uri = uri;
    head.version = http::Version::HTTP_11;
    strip(&mut head.headers);
    match guest.send(Request::from_parts(head, body)).await {
        Ok(answer) => {
            let (mut head, body) = answer.into_parts();
            strip(&mut head.headers);
            Response::from_parts(head, Body::new(body))
        }
        Err(error) => {
            tracing::debug!(%id, %error, "the guest did not take a request");
            (StatusCode::BAD_GATEWAY, "the guest did not take the request").into_response()
        }
    }
}

fn strip(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(header::HOST);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_kept_byte_for_byte() {
        let id = CapsuleId::new();
        let uri: Uri = format!("/proxy/{id}/80/a%2Fb//?x=%20").parse().unwrap();
        let (found, to) = target(&uri).unwrap();
        assert_eq!(found, id);
        assert_eq!(to.to_string(), "http://169.254.0.2:80/a%2Fb//?x=%20");
        for bad in ["/proxy/x/80/", "/proxy/", "/x", &format!("/proxy/{id}/0/")] {
            assert!(target(&bad.parse().unwrap()).is_none(), "{bad}");
        }
    }
}
