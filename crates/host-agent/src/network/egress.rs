//! Enforcement of a capsule's rules for outgoing connections. While no rule has a host name, the
//! firewall rules of the capsule's namespace suffice. Otherwise the agent serves as the capsule's
//! name server (`resolver.rs`), and filters its connections to ports 80 and 443 (`filter.rs`). The
//! filter admits a connection by the name that it asks for. The destination must be an address that
//! the name server gave for that name. Both run inside the capsule's namespace. While this process
//! is not there, nothing is let through.

mod dns;
mod filter;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod names;
mod requests;
mod resolver;
mod rules;
mod tls;

use super::namespace::Namespace;
use super::plan::{FILTER_PORT, GATEWAY, Plan};
use crate::sys;
use resolver::Resolver;
use rules::Rules;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use types::Egress;

/// Enforcer of the rules of one capsule. Without a guard, no name leads anywhere.
pub(crate) struct Guard {
    namespace: Namespace,
    plan: Plan,
    rules: Arc<Rules>,
    /// True while the namespace is known to have the firewall rules of `rules`.
    applied: AtomicBool,
    /// True once the name server and the filter serve, as tasks of the namespace.
    serving: AtomicBool,
}

impl Guard {
    /// Begins to enforce rules that are already applied in the namespace.
    pub(super) async fn new(
        plan: Plan,
        namespace: &Namespace,
        egress: &Egress,
    ) -> io::Result<Self> {
        let guard = Self {
            namespace: namespace.clone(),
            plan,
            rules: Arc::new(Rules::from(egress.clone())),
            applied: AtomicBool::new(true),
            serving: AtomicBool::new(false),
        };
        if egress.has_names() {
            guard.serve().await?;
        }
        Ok(guard)
    }

    /// Replaces the rules. On return, the new rules are in force for open connections too. Firewall
    /// rules that the namespace has already are not applied again.
    pub(crate) async fn set(&self, egress: Egress) -> io::Result<()> {
        let text = self.plan.namespace_rules(&egress);
        let same = text == self.plan.namespace_rules(&self.rules.now().egress);
        if egress.has_names() {
            self.serve().await?;
        }
        self.rules.replace(egress).await;
        if same && self.applied.load(Ordering::Acquire) {
            return Ok(());
        }
        // Without names in the rules, filter and name server stay for the allowed connections they
        // carry.
        self.apply(text).await
    }

    /// Returns the count of connections and requests that were refused by name, since this process
    /// guards the namespace.
    pub(crate) fn refused(&self) -> u64 {
        self.rules.refused()
    }

    /// Applies the rules in the namespace again. An agent that died may have written rules down
    /// without applying them.
    pub(crate) async fn reapply(&self) -> io::Result<()> {
        let text = self.plan.namespace_rules(&self.rules.now().egress);
        self.apply(text).await
    }

    async fn apply(&self, text: String) -> io::Result<()> {
        self.applied.store(false, Ordering::Release);
        self.namespace.run_async(move || sys::apply_nft(&text)).await?;
        self.applied.store(true, Ordering::Release);
        Ok(())
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
    use std::fs::File;

    #[tokio::test]
    async fn rules_that_are_applied_already_are_not_applied_again() {
        let plan = Plan::new("abcd", "198.18.0.0/28", &[]).unwrap();
        let namespace = Namespace::new(File::open("/proc/self/ns/net").unwrap());
        let guard = Guard::new(plan, &namespace, &Egress::default()).await.unwrap();
        // Nothing can be applied in a closed namespace.
        namespace.close().await;
        guard.set(Egress { revision: 1, ..Egress::default() }).await.unwrap();
        assert_eq!(guard.rules.now().egress.revision, 1);
        let deny = Egress { deny: vec!["0.0.0.0/0".parse().unwrap()], ..Egress::default() };
        assert!(guard.set(deny.clone()).await.is_err());
        assert!(guard.set(deny).await.is_err(), "rules that failed count as applied");
        assert!(guard.reapply().await.is_err());
    }
}
