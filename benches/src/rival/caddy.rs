//! Caddy as hops.

use super::{CADDY, CADDY_H2, CADDY_SECOND, CADDY_SECOND_TLS, CADDY_TLS, Certificates, UPSTREAM};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Name in the second hop's certificate.
const NAME: &str = "localhost";

/// Starts all hops in one server.
pub(super) fn hops(dir: &Path, certificates: &Certificates) -> Child {
    let Certificates { authority, server: (cert, key), client } = certificates;
    let at = |port: u16| format!("http://:{port}");
    let shown = format!(
        "tls_client_auth {} {}\n tls_trusted_ca_certs {authority}\n tls_server_name {NAME}\n",
        client.0, client.1
    );
    let public = format!("tls {cert} {key}\n");
    let mutual = format!(
        "tls {cert} {key} {{\n client_auth {{\n mode require_and_verify\n \
         trusted_ca_cert_file {authority}\n }}\n }}\n"
    );
    let sites = [
        site(&at(CADDY), "", CADDY_SECOND, ""),
        site(&at(CADDY_SECOND), "", UPSTREAM, ""),
        site(&at(CADDY_TLS), "", CADDY_SECOND_TLS, &shown),
        site(&format!("https://:{CADDY_H2}"), &public, CADDY_SECOND_TLS, &shown),
        site(&format!("https://:{CADDY_SECOND_TLS}"), &mutual, UPSTREAM, ""),
    ];
    let global = format!(
        "{{\n admin off\n auto_https off\n default_sni {NAME}\n \
         servers {{\n protocols h1 h2\n }}\n}}\n"
    );
    start(dir, &(global + &sites.concat()))
}

/// Returns a site that passes requests on by HTTP/1.1. With `shown`, the next hop has TLS.
fn site(address: &str, begin: &str, next: u16, shown: &str) -> String {
    // Where Caddy demands a client's certificate, the host must be the server's name. The requested
    // name is in X-Forwarded-Host too.
    let (scheme, host) = match shown {
        "" => ("http", String::new()),
        _ => ("https", format!("header_up Host {NAME}\n")),
    };
    format!(
        "{address} {{\n bind 127.0.0.1\n {begin} reverse_proxy {scheme}://127.0.0.1:{next} {{\n \
         {host} transport http {{\n versions 1.1\n keepalive_idle_conns_per_host 256\n \
         {shown} }}\n }}\n}}\n"
    )
}

fn start(dir: &Path, config: &str) -> Child {
    let path = dir.join("Caddyfile");
    fs::write(&path, config).unwrap();
    let mut command = Command::new("caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&path).env("HOME", dir);
    command.env("XDG_DATA_HOME", dir).env("XDG_CONFIG_HOME", dir);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("caddy is missing")
}
