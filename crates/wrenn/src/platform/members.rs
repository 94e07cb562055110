//! A host agent's listener as a member of a platform, and the places where plain text is refused.

use crate::settings::Plaintext;
use daemon::Tasks;
use hop::Limits;
use host_agent::Agent;
use host_agent::membership::Membership;
use std::net::IpAddr;
use tokio::net::TcpListener;

/// Serves the agent's RPCs to the platform's control planes.
///
/// # Errors
/// When the platform has no certificates, the address is not loopback and plain text is not
/// allowed.
pub(super) fn serve(
    listener: TcpListener,
    agent: Agent,
    member: &Membership,
    plaintext: Plaintext,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    match member.tls() {
        Some(tls) => hop::serve_tls(listener, tls, agent, Limits::default(), tasks),
        None => {
            anyhow::ensure!(
                plaintext.allowed || listener.local_addr()?.ip().is_loopback(),
                "without certificates (WRENN_CA_CERT, WRENN_CA_KEY) the agent must listen on a \
                 loopback address, or set WRENN_ALLOW_PLAINTEXT=1"
            );
            tracing::warn!(
                "the platform has no certificates; the agent accepts commands from every client"
            );
            // Clients have no certificates here, so all connections may come from one control
            // plane's address.
            let limits = Limits::default();
            let limits = Limits { per_network: limits.connections, ..limits };
            hop::serve(listener, agent, limits, tasks);
        }
    }
    Ok(())
}

/// Returns a listener's address for control planes.
///
/// # Errors
/// When the listener accepts on all addresses.
pub(super) fn own_address(listener: &TcpListener) -> anyhow::Result<String> {
    let at = listener.local_addr()?;
    anyhow::ensure!(
        !at.ip().is_unspecified(),
        "set the address of this host for control planes with --address IP:PORT"
    );
    Ok(at.to_string())
}

/// Refuses a URL that would send tokens to another machine in plain text.
pub(super) fn check_url(url: &str, plaintext: Plaintext) -> anyhow::Result<()> {
    let parsed = url.parse::<http::Uri>().ok();
    let parsed = parsed.filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
    let host = parsed.as_ref().and_then(http::Uri::host);
    let Some(host) = host else { anyhow::bail!("WRENN_CP_URL `{url}` is not a valid URL") };
    let host = host.trim_matches(['[', ']']);
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    anyhow::ensure!(
        url.starts_with("https://") || local || plaintext.allowed,
        "WRENN_CP_URL must begin with https://, or set WRENN_ALLOW_PLAINTEXT=1 to send tokens in \
         plain text"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_url_is_refused_beyond_loopback_unless_allowed() {
        let check = |url: &str, allowed| check_url(url, Plaintext { allowed }).is_ok();
        assert!(check("https://wrenn.example.com", false));
        assert!(check("http://127.0.0.1:8000", false) && check("http://[::1]:8000", false));
        assert!(check("http://localhost:8000", false));
        assert!(!check("http://wrenn.example.com", false) && !check("http://10.0.0.1", false));
        assert!(check("http://10.0.0.1", true) && !check("nonsense", true));
    }
}
