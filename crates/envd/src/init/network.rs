//! The guest's side of the network. Address, gateway and MAC are the same in every capsule,
//! so that a snapshot fits anywhere; the host's side is `network/plan.rs` of the agent.

use crate::sys;
use anyhow::Context;

const ADDRESS: [u8; 4] = [169, 254, 0, 2];
const GATEWAY: [u8; 4] = [169, 254, 0, 1];
const MASK: [u8; 4] = [255, 255, 255, 252];
const HOSTS: &str = "127.0.0.1 localhost capsule\n::1 localhost\n";

/// Raises the interfaces and writes the resolver's file.
pub(super) fn configure() -> anyhow::Result<()> {
    sys::raise_interface("lo").context("raising lo")?;
    sys::configure_interface("eth0", ADDRESS, MASK).context("raising eth0")?;
    sys::default_route(GATEWAY).context("adding the default route")?;
    set_host_name("capsule")?;
    std::fs::write("/etc/hosts", HOSTS).context("writing /etc/hosts")?;
    let resolver = resolver_from(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default());
    let _ = std::fs::remove_file("/etc/resolv.conf");
    std::fs::write("/etc/resolv.conf", resolver).context("writing /etc/resolv.conf")
}

/// Sets the kernel's host name.
pub(crate) fn set_host_name(name: &str) -> anyhow::Result<()> {
    rustix::system::sethostname(name.as_bytes()).context("setting the host name")
}

/// The name servers, from `wrenn.dns=A,B` on the kernel's command line.
fn resolver_from(cmdline: &str) -> String {
    cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix("wrenn.dns="))
        .unwrap_or("")
        .split(',')
        .filter(|server| server.parse::<std::net::IpAddr>().is_ok())
        .map(|server| format!("nameserver {server}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn name_servers_come_from_the_command_line() {
        let text = super::resolver_from("quiet wrenn.dns=1.1.1.1,x,8.8.8.8 y");
        assert_eq!(text, "nameserver 1.1.1.1\nnameserver 8.8.8.8\n");
    }
}
