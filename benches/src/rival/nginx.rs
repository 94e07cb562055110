//! nginx as the upstream and as hops.

use super::{Certificates, NGINX, NGINX_H2, NGINX_SECOND, NGINX_SECOND_TLS, NGINX_TLS, UPSTREAM};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Starts the upstream.
pub(super) fn upstream(dir: &Path) -> Child {
    let root = format!("location / {{ root {}/www; }}", dir.display());
    start(dir, "upstream", 1, &format!("server {{ {} {root} }}", listen(UPSTREAM, "")))
}

/// Starts all hops in one server, with as many workers as there are hops in a row.
pub(super) fn hops(dir: &Path, certificates: &Certificates) -> Child {
    let tls = pass("tls", "https") + &shown(certificates);
    let servers = [
        server(&listen(NGINX, ""), &pass("plain", "http")),
        server(&listen(NGINX_SECOND, ""), &pass("plain_second", "http")),
        server(&listen(NGINX_TLS, ""), &tls),
        server(&(listen(NGINX_H2, "ssl http2") + &public(certificates)), &tls),
        server(
            &(listen(NGINX_SECOND_TLS, "ssl") + &mutual(certificates)),
            &pass("tls_second", "http"),
        ),
    ];
    let groups = [
        pool("plain", NGINX_SECOND),
        pool("plain_second", UPSTREAM),
        pool("tls", NGINX_SECOND_TLS),
        pool("tls_second", UPSTREAM),
    ];
    start(dir, "hops", 2, &(groups.concat() + &servers.concat()))
}

fn listen(port: u16, how: &str) -> String {
    format!("listen 127.0.0.1:{port} {how} backlog=4096; ")
}

/// Returns the pool of connections to the next hop.
fn pool(name: &str, next: u16) -> String {
    let kept = "keepalive 256; keepalive_requests 1000000;";
    format!("upstream {name} {{ server 127.0.0.1:{next}; {kept} }}\n")
}

/// Returns the directive that passes requests to a pool.
fn pass(name: &str, scheme: &str) -> String {
    format!("proxy_pass {scheme}://{name}; ")
}

/// Returns the certificate that a first hop shows, and the one that it demands.
fn shown(certificates: &Certificates) -> String {
    let Certificates { authority, client: (cert, key), .. } = certificates;
    format!(
        "proxy_ssl_certificate {cert}; proxy_ssl_certificate_key {key};
         proxy_ssl_trusted_certificate {authority}; proxy_ssl_verify on;
         proxy_ssl_name localhost; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3; "
    )
}

fn public(certificates: &Certificates) -> String {
    let (cert, key) = &certificates.server;
    format!("ssl_certificate {cert}; ssl_certificate_key {key}; ")
}

/// Returns the settings of a second hop that demands a client's certificate.
fn mutual(certificates: &Certificates) -> String {
    format!(
        "{}ssl_client_certificate {}; ssl_verify_client on; ssl_protocols TLSv1.3; ",
        public(certificates),
        certificates.authority
    )
}

/// Returns a server that passes requests on.
fn server(begin: &str, pass: &str) -> String {
    format!(
        "server {{ {begin}
             location / {{
                 {pass}
                 proxy_http_version 1.1;
                 proxy_max_temp_file_size 0;
                 proxy_set_header Connection '';
                 proxy_set_header Host $http_host;
                 proxy_set_header X-Forwarded-Host $http_host;
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                 proxy_set_header X-Forwarded-Proto $scheme;
             }}
         }}\n"
    )
}

fn start(dir: &Path, name: &str, workers: u32, servers: &str) -> Child {
    let path = dir.join(format!("{name}.conf"));
    let config = format!(
        "worker_processes {workers};
         pid {0}/{name}.pid;
         error_log {0}/{name}.log;
         events {{ worker_connections 8192; }}
         http {{
             access_log off;
             keepalive_requests 1000000;
             client_body_temp_path {0}/{name}-body;
             proxy_temp_path {0}/{name}-proxy;
             fastcgi_temp_path {0}/{name}-fastcgi;
             scgi_temp_path {0}/{name}-scgi;
             uwsgi_temp_path {0}/{name}-uwsgi;
             {servers}
         }}",
        dir.display()
    );
    fs::write(&path, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&path).args(["-g", "daemon off;"]);
    command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("nginx is missing")
}
