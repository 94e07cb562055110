//! Application of a plan by netlink and nftables. All functions block, so callers use a thread.

use super::error::{Error, io_error};
use super::plan::{
    GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, METADATA, Plan, TAP, UPLINK, namespace_limits,
};
use crate::sys;
use daemon::blocking;
use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use types::Egress;

/// Time limit for the kernel to remove the links of a namespace that no process holds.
const LINK_GOES: Duration = Duration::from_secs(1);

/// Refuses a range that the machine uses already.
pub(super) async fn check_clash(plan: &Plan) -> Result<(), Error> {
    let own = plan.link_prefix();
    let ranges = blocking(move || with_netlink(|netlink| used_ranges(netlink, own)))
        .await
        .map_err(io_error("cannot read the machine's routes"))?;
    match ranges.iter().find(|(address, prefix)| plan.overlaps(*address, *prefix)) {
        None => Ok(()),
        Some((address, prefix)) => {
            Err(Error::Clash { range: plan.range(), other: format!("{address}/{prefix}") })
        }
    }
}

/// Returns the addresses and routes of the machine, without those of the agent's own links.
async fn used_ranges(netlink: Handle, own: String) -> io::Result<Vec<(Ipv4Addr, u8)>> {
    use rtnetlink::packet_route::link::LinkAttribute;
    let mut ours = Vec::new();
    let mut links = netlink.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(io::Error::other)? {
        let ours_by_name =
            |a: &LinkAttribute| matches!(a, LinkAttribute::IfName(n) if n.starts_with(&own));
        if link.attributes.iter().any(ours_by_name) {
            ours.push(link.header.index);
        }
    }
    let mut out = Vec::new();
    let mut addresses = netlink.address().get().execute();
    while let Some(found) = addresses.try_next().await.map_err(io::Error::other)? {
        for attribute in &found.attributes {
            if let AddressAttribute::Address(IpAddr::V4(ip)) = attribute
                && !ours.contains(&found.header.index)
            {
                out.push((*ip, found.header.prefix_len));
            }
        }
    }
    let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = netlink.route().get(all).execute();
    while let Some(route) = routes.try_next().await.map_err(io::Error::other)? {
        let of_ours = |a: &RouteAttribute| matches!(a, RouteAttribute::Oif(i) if ours.contains(i));
        if route.attributes.iter().any(of_ours) {
            continue;
        }
        for attribute in &route.attributes {
            if let RouteAttribute::Destination(RouteAddress::Inet(ip)) = attribute {
                out.push((*ip, route.header.destination_prefix_length));
            }
        }
    }
    Ok(out)
}

/// Enables forwarding and applies the host's own rules.
pub(super) fn prepare_host(plan: &Plan) -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    sys::apply_nft(&plan.host_rules())
}

/// Removes the host's rules, and the folder of namespaces when no agent has a namespace.
pub(crate) fn restore_host(plan: &Plan) -> io::Result<()> {
    // The agent's own folder and the folder that all agents share each stay when not empty.
    for dir in plan.namespaces().ancestors().take(2) {
        let _ = fs::remove_dir(dir);
    }
    sys::apply_nft(&plan.host_rules_removal())
}

/// Makes a capsule's namespace and the links and rules inside it. Returns the namespace and the
/// machine's tap.
pub(super) fn create(plan: &Plan, slot: u32, egress: &Egress) -> io::Result<(File, OwnedFd)> {
    remove(plan, slot)?;
    let (host, inner) = plan.link(slot);
    let (name, rules, path) =
        (plan.host_link(slot), plan.namespace_rules(egress), plan.namespace(slot));
    let host_ns = File::open("/proc/self/ns/net")?;
    let peer = name.clone();
    let (namespace, tap) = sys::in_new_namespace(move |namespace| {
        bind(namespace, &path)?;
        fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").or_else(absent)?;
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").or_else(absent)?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        let tap = sys::open_tap(TAP)?;
        with_netlink(|netlink| wire_inside(netlink, peer, host_ns, host, inner))?;
        sys::apply_nft(&(namespace_limits() + &rules))?;
        Ok((namespace.try_clone()?, tap))
    })?;
    with_netlink(|netlink| wire_outside(netlink, name, host))?;
    Ok((namespace, tap))
}

/// Ignores a missing file, since a kernel without IPv6 has nothing to turn off.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn bind(namespace: &File, path: &Path) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    File::create(path)?;
    let from = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    rustix::mount::mount_bind(from, path)?;
    rustix::mount::mount_change(path, MountPropagationFlags::PRIVATE).or(Ok::<_, io::Error>(()))
}

async fn wire_inside(
    netlink: Handle,
    peer: String,
    host_ns: File,
    host: Ipv4Addr,
    inner: Ipv4Addr,
) -> io::Result<()> {
    let fail = io::Error::other;
    let links = || netlink.link();
    links().add(LinkVeth::new(UPLINK, &peer).build()).execute().await.map_err(fail)?;
    let (uplink, peer) = (index(&netlink, UPLINK).await?, index(&netlink, &peer).await?);
    let moved = LinkUnspec::new_with_index(peer).setns_by_fd(host_ns.as_raw_fd()).build();
    links().set(moved).execute().await.map_err(fail)?;
    let tap = index(&netlink, TAP).await?;
    let tap_up = LinkUnspec::new_with_index(tap).address(GATEWAY_MAC.to_vec()).up().build();
    links().set(tap_up).execute().await.map_err(fail)?;
    let lo = index(&netlink, "lo").await?;
    for link in [uplink, lo] {
        links().set(LinkUnspec::new_with_index(link).up().build()).execute().await.map_err(fail)?;
    }
    netlink.address().add(tap, GATEWAY.into(), 30).execute().await.map_err(fail)?;
    netlink.address().add(uplink, inner.into(), 31).execute().await.map_err(fail)?;
    netlink.address().add(lo, METADATA.into(), 32).execute().await.map_err(fail)?;
    netlink
        .neighbours()
        .add(tap, GUEST.into())
        .link_layer_address(&GUEST_MAC)
        .execute()
        .await
        .map_err(fail)?;
    let default = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(uplink);
    // The host's end has no address yet, so the kernel cannot look up the gateway.
    let default = default.gateway(host).onlink().build();
    netlink.route().add(default).execute().await.map_err(fail)
}

async fn wire_outside(netlink: Handle, name: String, host: Ipv4Addr) -> io::Result<()> {
    let link = index(&netlink, &name).await?;
    netlink.address().add(link, host.into(), 31).execute().await.map_err(io::Error::other)?;
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let up = LinkUnspec::new_with_index(link).up().build();
    netlink.link().set(up).execute().await.map_err(io::Error::other)
}

async fn index(netlink: &Handle, name: &str) -> io::Result<u32> {
    let mut found = netlink.link().get().match_name(name.to_owned()).execute();
    let link = found.try_next().await.map_err(io::Error::other)?;
    link.map(|l| l.header.index)
        .ok_or_else(|| io::Error::other(format!("no link has the name {name}")))
}

/// Runs netlink requests from the current thread's namespace.
fn with_netlink<T, F>(work: impl FnOnce(Handle) -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::select! {
            done = work(handle) => done,
            () = connection => Err(io::Error::other("netlink closed its socket")),
        }
    })
}

/// Removes a namespace and waits until its link to the host has gone with it. A missing namespace
/// is success.
pub(super) fn remove(plan: &Plan, slot: u32) -> io::Result<()> {
    let path = plan.namespace(slot);
    if path.exists() {
        // The path is not a mount if an agent died between making the file and binding it.
        while rustix::mount::unmount(&path, UnmountFlags::DETACH).is_ok() {}
        fs::remove_file(&path)?;
    }
    let link = plan.host_link(slot);
    let there = Path::new("/sys/class/net").join(&link);
    // The kernel removes links in batches by itself, which is faster than a request for each link.
    let limit = Instant::now() + LINK_GOES;
    while there.exists() && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(2));
    }
    if !there.exists() {
        return Ok(());
    }
    // `network.rs` has closed everything that this process had inside, so another process holds it.
    tracing::warn!(link, "another process still holds a network namespace that is being removed");
    metrics::counter!("wrenn_host_namespaces_held_total").increment(1);
    with_netlink(|netlink| delete(netlink, link))
}

async fn delete(netlink: Handle, name: String) -> io::Result<()> {
    // The link may have gone since the check.
    let Ok(link) = index(&netlink, &name).await else { return Ok(()) };
    netlink.link().del(link).execute().await.map_err(io::Error::other)
}

/// Lists the slots of this agent whose namespaces are bound.
pub(super) fn existing(plan: &Plan) -> Vec<u32> {
    let entries = fs::read_dir(plan.namespaces()).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}
