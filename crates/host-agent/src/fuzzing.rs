//! Entry points of the fuzz targets in `fuzz/`. The feature `fuzzing` alone compiles this module,
//! so a build for use has no public parser. Each function panics when it finds a fault.

pub use crate::network::egress::fuzzing::{dns, hello, requests};
pub use crate::snapshot::fuzzing::{layer, manifest};
pub use crate::vmm::fuzzing::{firecracker, qmp};
