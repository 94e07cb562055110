//! What the fuzz targets of `fuzz/` call. It exists with the feature `fuzzing` alone, so that no
//! parser is public in a build that is used. Each function panics when it finds a fault.

pub use crate::network::egress::fuzzing::{dns, hello, requests};
pub use crate::snapshot::fuzzing::{layer, manifest};
pub use crate::vmm::fuzzing::{firecracker, qmp};
