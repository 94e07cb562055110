//! What a capsule may reach outside, carried out: by the rules of its namespace alone while no rule
//! speaks of names; else its name server is ours (`resolver.rs`) and its connections to ports 80
//! and 443 come to us (`filter.rs`), which we let through by the name that they ask for, to the
//! addresses that the name server gave for it. Both are inside the capsule's namespace; if this
//! process is not there, nothing is let through.

mod filter;
mod names;
mod resolver;

use super::netns;
use super::plan::{FILTER_PORT, GATEWAY, Plan};
use crate::sys;
use daemon::OwnTasks;
use resolver::Resolver;
use std::fs::File;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use tokio_util::sync::CancellationToken;
use types::Egress;

/// Who carries out what one capsule may reach; without it, no name leads anywhere.
pub(crate) struct Guard {
    namespace: Arc<File>,
    plan: Plan,
    rules: Arc<Rules>,
    /// The name server and the filter.
    serving: Mutex<Option<OwnTasks>>,
}

/// The rules as they are now.
struct Rules {
    now: RwLock<Known>,
}

#[derive(Clone)]
struct Known {
    egress: Arc<Egress>,
    /// Given when these are replaced: what is under way is then looked at again.
    replaced: CancellationToken,
}

impl Rules {
    fn now(&self) -> Known {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, egress: Egress) {
        let known = Known { egress: Arc::new(egress), replaced: CancellationToken::new() };
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *now, known).replaced.cancel();
    }
}

impl Guard {
    /// Begins to carry out rules that the namespace has already.
    pub(super) async fn new(plan: Plan, namespace: &File, egress: &Egress) -> io::Result<Self> {
        let known = Known { egress: Arc::new(egress.clone()), replaced: CancellationToken::new() };
        let guard = Self {
            namespace: Arc::new(namespace.try_clone()?),
            plan,
            rules: Arc::new(Rules { now: RwLock::new(known) }),
            serving: Mutex::default(),
        };
        if egress.has_names() {
            guard.serve().await?;
        }
        Ok(guard)
    }

    /// Replaces the rules. When this is done they hold, for what is under way too.
    pub(crate) async fn set(&self, egress: Egress) -> io::Result<()> {
        let text = self.plan.namespace_rules(&egress);
        if egress.has_names() {
            self.serve().await?;
        }
        self.rules.replace(egress);
        let namespace = Arc::clone(&self.namespace);
        let apply = move || netns::set_rules(&namespace, text);
        let applied = tokio::task::spawn_blocking(apply).await;
        // Where no name decides any more, both stay, for what they carry and is allowed.
        applied.unwrap_or_else(|e| Err(io::Error::other(e)))
    }

    /// Serves, unless it does.
    async fn serve(&self) -> io::Result<()> {
        if self.lock().is_some() {
            return Ok(());
        }
        let namespace = Arc::clone(&self.namespace);
        let open = move || {
            sys::in_namespace(&namespace, || {
                let filter = TcpListener::bind((GATEWAY, FILTER_PORT))?;
                let tcp = TcpListener::bind((GATEWAY, 53))?;
                let udp = UdpSocket::bind((GATEWAY, 53))?;
                filter.set_nonblocking(true)?;
                tcp.set_nonblocking(true)?;
                udp.set_nonblocking(true)?;
                Ok((filter, tcp, udp))
            })
        };
        let opened = tokio::task::spawn_blocking(open).await;
        let (filter, tcp, udp) = opened.unwrap_or_else(|e| Err(io::Error::other(e)))?;
        let filter = tokio::net::TcpListener::from_std(filter)?;
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let udp = tokio::net::UdpSocket::from_std(udp)?;
        let tasks = OwnTasks::default();
        let resolver = Resolver::new(self.plan.dns(), Arc::clone(&self.rules));
        resolver::serve(Arc::clone(&resolver), udp, tcp, &tasks);
        let way = filter::Way {
            namespace: Arc::clone(&self.namespace),
            plan: self.plan.clone(),
            rules: Arc::clone(&self.rules),
            resolver,
        };
        filter::serve(way, filter, &tasks);
        *self.lock() = Some(tasks);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OwnTasks>> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
