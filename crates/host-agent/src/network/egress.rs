//! Enforcement of a capsule's rules for outgoing connections. While no rule has a host name, the
//! firewall rules of the capsule's namespace suffice. Otherwise the agent serves as the capsule's
//! name server (`resolver.rs`), and filters its connections to ports 80 and 443 (`filter.rs`). The
//! filter admits a connection by the name that it asks for. The destination must be an address that
//! the name server gave for that name. Both run inside the capsule's namespace. While this process
//! is not there, nothing is let through.

mod filter;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod names;
mod requests;
mod resolver;
mod tls;

use super::namespace::Namespace;
use super::plan::{FILTER_PORT, GATEWAY, Plan};
use crate::sys;
use daemon::{read_lock, write_lock};
use resolver::Resolver;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::Egress;

/// Enforcer of the rules of one capsule. Without a guard, no name leads anywhere.
pub(crate) struct Guard {
    namespace: Namespace,
    plan: Plan,
    rules: Arc<Rules>,
    /// True once the name server and the filter serve, as tasks of the namespace.
    serving: AtomicBool,
}

/// Rules that are in force now.
struct Rules {
    now: RwLock<Known>,
}

#[derive(Clone)]
struct Known {
    egress: Arc<Egress>,
    /// Token that is cancelled when these rules are replaced. Open connections are then checked
    /// again.
    replaced: CancellationToken,
    /// Connections that pass bytes by these rules.
    under_way: TaskTracker,
}

impl From<Egress> for Known {
    fn from(egress: Egress) -> Self {
        let (replaced, under_way) = (CancellationToken::new(), TaskTracker::new());
        Self { egress: Arc::new(egress), replaced, under_way }
    }
}

impl Rules {
    fn now(&self) -> Known {
        read_lock(&self.now).clone()
    }

    /// Replaces the rules. Returns once no connection passes a byte by the earlier ones.
    async fn replace(&self, egress: Egress) {
        let earlier = {
            let mut now = write_lock(&self.now);
            std::mem::replace(&mut *now, egress.into())
        };
        earlier.replaced.cancel();
        earlier.under_way.close();
        earlier.under_way.wait().await;
    }
}

impl Guard {
    /// Begins to enforce rules that are already applied in the namespace.
    pub(super) async fn new(
        plan: Plan,
        namespace: &Namespace,
        egress: &Egress,
    ) -> io::Result<Self> {
        let known = Known::from(egress.clone());
        let guard = Self {
            namespace: namespace.clone(),
            plan,
            rules: Arc::new(Rules { now: RwLock::new(known) }),
            serving: AtomicBool::new(false),
        };
        if egress.has_names() {
            guard.serve().await?;
        }
        Ok(guard)
    }

    /// Replaces the rules. On return, the new rules are in force for open connections too.
    pub(crate) async fn set(&self, egress: Egress) -> io::Result<()> {
        let text = self.plan.namespace_rules(&egress);
        if egress.has_names() {
            self.serve().await?;
        }
        self.rules.replace(egress).await;
        // Without names in the rules, filter and name server stay for the allowed connections they
        // carry.
        self.namespace.run_async(move || sys::apply_nft(&text)).await
    }

    /// Starts the name server and the filter, unless they run.
    async fn serve(&self) -> io::Result<()> {
        if self.serving.load(Ordering::Acquire) {
            return Ok(());
        }
        let open = || {
            let filter = TcpListener::bind((GATEWAY, FILTER_PORT))?;
            let tcp = TcpListener::bind((GATEWAY, 53))?;
            let udp = UdpSocket::bind((GATEWAY, 53))?;
            filter.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            Ok((filter, tcp, udp))
        };
        let (filter, tcp, udp) = self.namespace.run_async(open).await?;
        let filter = tokio::net::TcpListener::from_std(filter)?;
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        let resolver = Resolver::new(self.plan.dns(), Arc::clone(&self.rules));
        resolver::serve(Arc::clone(&resolver), udp, tcp, &self.namespace);
        let way = filter::Way {
            namespace: self.namespace.clone(),
            plan: self.plan.clone(),
            rules: Arc::clone(&self.rules),
            resolver,
        };
        filter::serve(way, filter);
        self.serving.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Waker};

    #[tokio::test]
    async fn rule_replacement_waits_for_connections_under_old_rules() {
        let rules = Rules { now: RwLock::new(Egress::default().into()) };
        let Known { replaced, under_way, .. } = rules.now();
        let passing = under_way.token();
        let later = Egress { revision: 7, ..Egress::default() };
        let mut replacing = std::pin::pin!(rules.replace(later));
        let mut context = Context::from_waker(Waker::noop());
        assert!(replacing.as_mut().poll(&mut context).is_pending());
        // A reader sees the new rules before the wait ends, and a connection that passes bytes is
        // told.
        assert_eq!(rules.now().egress.revision, 7);
        assert!(replaced.is_cancelled() && !rules.now().replaced.is_cancelled());
        drop(passing);
        replacing.await;
    }
}
