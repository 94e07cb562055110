//! The other side of a connection to envd: the host, or a program of the guest.

use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// The other side of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub address: SocketAddr,
    /// Permit of a program's connection. `None` for the host.
    pub permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Peer {
    /// Reports whether the other side is a program of the guest. Always false on an ordinary
    /// machine.
    pub(crate) fn is_program(&self) -> bool {
        self.permit.is_some()
    }
}
