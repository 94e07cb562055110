//! The host of a request at the control plane, which may name a capsule.
#![no_main]

use ::http::{Request, header};
use libfuzzer_sys::fuzz_target;

/// Items of the control plane that the included module uses.
mod http {
    pub(crate) mod compat_e2b {
        pub(crate) fn serves(path: &str) -> bool {
            path.starts_with("/sandboxes")
        }
    }
}

// The module is pure, so the control plane and its database client need not be built.
#[path = "../../crates/control-plane/src/proxy/target.rs"]
#[allow(dead_code, reason = "the module's other callers are in the control plane")]
mod target;

use target::{Addressee, Domains, SANDBOX_ID, SANDBOX_PORT};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let mut request = Request::builder().uri(next());
    for name in [header::HOST, SANDBOX_ID, SANDBOX_PORT] {
        let value = next();
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    let Ok(request) = request.body(()) else { return };
    let any = Domains::default();
    let one = Domains::new(&["example.com".to_owned()]);
    for domains in [any, one] {
        if let Addressee::Capsule(found) = target::of(&request, &domains) {
            assert!(found.port != 0, "a port that cannot be");
            // The usual form of a name must lead to the same capsule as any other form.
            let name = format!("{}-{}.example.com", found.port, found.capsule);
            let again = Request::builder().header(header::HOST, name).body(());
            let Ok(again) = again else { continue };
            assert_eq!(target::of(&again, &domains), Addressee::Capsule(found));
        }
    }
});
