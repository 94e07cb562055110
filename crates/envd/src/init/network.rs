//! The guest's side of the network. Address, gateway and MAC are the same in every capsule, so that
//! a snapshot fits anywhere. The agent's `network/plan.rs` holds the host's side.

use crate::sys;
use anyhow::Context;
use std::net::IpAddr;

const ADDRESS: [u8; 4] = [169, 254, 0, 2];
/// Address of the host.
pub(crate) const GATEWAY: [u8; 4] = [169, 254, 0, 1];
const MASK: [u8; 4] = [255, 255, 255, 252];

/// Brings the interfaces up, adds the default route and sets the host name.
pub(super) fn configure() -> anyhow::Result<()> {
    sys::raise_interface("lo").context("cannot bring up the interface lo")?;
    sys::configure_interface("eth0", ADDRESS, MASK)
        .context("cannot bring up the interface eth0")?;
    sys::default_route(GATEWAY).context("cannot add the default route")?;
    sys::set_host_name("capsule").context("cannot set the host name")
}

/// Returns the name servers that the host gives the guest.
pub(super) fn servers() -> Vec<IpAddr> {
    servers_from(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

/// Finds the name servers in `wrenn.dns=A,B` on the kernel's command line.
fn servers_from(cmdline: &str) -> Vec<IpAddr> {
    let given = cmdline.split_whitespace().find_map(|word| word.strip_prefix("wrenn.dns="));
    given.unwrap_or("").split(',').filter_map(|server| server.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    #[test]
    fn name_servers_are_read_from_the_kernel_command_line() {
        let servers = super::servers_from("quiet wrenn.dns=1.1.1.1,x,8.8.8.8 y");
        let wanted = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];
        assert_eq!(servers, wanted.map(IpAddr::V4));
        assert!(super::servers_from("quiet").is_empty());
    }
}
