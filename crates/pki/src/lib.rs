//! Identity of control planes and hosts: the authority that vouches for both, the contents of its
//! certificates, and the TLS 1.3 configurations that demand them.
//!
//! This crate opens no connection, keeps no file and never decides who may enrol.

mod authority;
mod identity;
mod tls;

pub use authority::{Authority, CONTROL_PLANE_LIFE, HOST_LIFE, Leaf};
pub use identity::{
    Key, Pair, common_name, expires_at, fingerprint, fingerprint_of_pem, public_key,
    public_key_of_request,
};
pub use tls::{
    Trust, accept_and_prove, accept_control_plane, dial_host, prove, serve_public, witness,
};

/// Faults of a certificate, a key or a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is not PEM")]
    NotPem(&'static str),
    #[error("{0}")]
    Wrong(&'static str),
    #[error("cannot create a certificate")]
    Make(#[from] rcgen::Error),
    #[error("cannot configure TLS")]
    Tls(#[from] rustls::Error),
}

/// Common name of a control plane's certificate.
pub const CONTROL_PLANE: &str = "wrenn-control-plane";
