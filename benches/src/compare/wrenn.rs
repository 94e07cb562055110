//! Wrenn in the comparison: the whole platform over its API, with the pools at their defaults.

use super::MEMORY_MIB;
use super::job::{Runtime, Sandbox};
use crate::guests;
use crate::pools::Pools;
use serde_json::json;
use tests::{Client, Platform};
use tokio::runtime::Handle;

/// Memory that a clone adds, in MiB. Clones share pages of their template's machine.
const NEED_MIB: u64 = 96;

/// A running platform.
pub(super) struct Wrenn {
    platform: Platform,
    client: Client,
    driver: String,
    handle: Handle,
}

/// A capsule.
struct Capsule<'a> {
    wrenn: &'a Wrenn,
    id: String,
}

impl Wrenn {
    /// Starts a platform, and creates the first capsule of the size, which is booted.
    pub(super) async fn launch(driver: &str) -> Self {
        let platform = guests::platform_by(driver, &Pools::Ready.vars()).await;
        guests::lift_limits(&platform).await;
        let client = platform.client();
        let first = client.create(&json!({ "memory_mib": MEMORY_MIB })).await;
        client.delete(&format!("/v1/capsules/{first}")).await.expect(204);
        Self { platform, client, driver: driver.to_owned(), handle: Handle::current() }
    }
}

impl Runtime for Wrenn {
    fn name(&self) -> String {
        format!("Wrenn ({})", self.driver)
    }

    fn isolation(&self) -> String {
        let vmm = match self.driver.as_str() {
            "firecracker" => "Firecracker on KVM",
            "kvm" => "QEMU on KVM",
            _ => "QEMU, emulated",
        };
        format!("a machine with a kernel of its own ({vmm}), VMM jailed")
    }

    fn need_mib(&self) -> u64 {
        NEED_MIB
    }

    fn start(&self, _: usize) -> Result<Box<dyn Sandbox + '_>, String> {
        let size = json!({ "memory_mib": MEMORY_MIB });
        let made = self.handle.block_on(self.client.post("/v1/capsules", &size));
        match made.body["id"].as_str().filter(|_| made.status == 201) {
            Some(id) => Ok(Box::new(Capsule { wrenn: self, id: id.to_owned() })),
            None => Err(format!("create: {} {}", made.status, made.body)),
        }
    }

    fn end(self: Box<Self>) {
        self.platform.finish();
    }
}

impl Sandbox for Capsule<'_> {
    fn run(&self, command: &[&str]) -> Result<String, String> {
        let body = json!({ "cmd": command[0], "args": command[1..] });
        let path = format!("/v1/capsules/{}/exec", self.id);
        let ran = self.wrenn.handle.block_on(self.wrenn.client.post(&path, &body));
        if ran.status != 200 || ran.body["exit_code"] != 0 {
            return Err(format!("{}: {} {}", command[0], ran.status, ran.body));
        }
        Ok(ran.body["stdout"].as_str().unwrap_or_default().to_owned())
    }

    fn stop(self: Box<Self>) -> Result<(), String> {
        let path = format!("/v1/capsules/{}", self.id);
        let gone = self.wrenn.handle.block_on(self.wrenn.client.delete(&path));
        let failure = || format!("removal: {} {}", gone.status, gone.body);
        if gone.status == 204 { Ok(()) } else { Err(failure()) }
    }
}
