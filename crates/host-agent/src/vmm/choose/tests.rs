//! Remembered outcomes of drivers, and their expiry.

use super::*;
use crate::config::FirecrackerChoice;
use crate::vmm::null::NullMachine;
use crate::vmm::{Error, Found, Saved};
use futures::FutureExt;
use futures::future::BoxFuture;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// A driver whose guests boot or not, as the text of a program says.
#[derive(Clone)]
struct Scripted {
    program: PathBuf,
    version: &'static str,
    tier: Isolation,
    boots: Arc<AtomicU32>,
}

impl Driver for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn accelerator(&self) -> &'static str {
        "kvm"
    }

    fn isolation(&self) -> Isolation {
        self.tier
    }

    fn boots_images(&self) -> bool {
        true
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone()]
    }

    fn version(&self) -> String {
        self.version.to_owned()
    }

    fn boot(&self, _: Spec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        self.boots.fetch_add(1, SeqCst);
        let booted = match fs::read(&self.program).unwrap().as_slice() {
            b"works" => {
                let console = PROBE_WORD.to_vec();
                Ok(Box::new(NullMachine { console, ..NullMachine::at(1) }) as Box<dyn Machine>)
            }
            _ => Err(Error::new("starting it", io::Error::other("it is broken"))),
        };
        std::future::ready(booted).boxed()
    }

    fn fingerprint(&self) -> String {
        "scripted".to_owned()
    }

    fn restore(&self, spec: Spec, _: Saved) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        self.boot(spec)
    }

    fn adopt(&self, _: Found<'_>) -> Option<Box<dyn Machine>> {
        None
    }
}

fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_owned(),
        network: String::new(),
        ready_networks: 0,
        dns: Vec::new(),
        driver: DriverChoice::Auto,
        firecracker: FirecrackerChoice::default(),
        memory_mib: 0,
        ready_memory_percent: 0,
        vcpus: 0,
        disk_mib: 0,
        registries: crate::images::settings::Registries::default(),
        store: None,
        connections: 1,
        log_limits: crate::config::LogLimits::default(),
    }
}

/// Replaces a program by another file, as an installation does.
fn install(program: &Path, contents: &str) {
    let staged = program.with_extension("new");
    fs::write(&staged, contents).unwrap();
    fs::rename(&staged, program).unwrap();
}

#[tokio::test]
async fn probe_verdict_is_cached_until_an_input_changes() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let boot = config.initramfs().parent().unwrap().to_owned();
    fs::create_dir_all(&boot).unwrap();
    install(&config.kernel(), "kernel");
    install(&config.initramfs(), "initramfs");
    let program = dir.path().join("program");
    install(&program, "fails");
    let boots = Arc::new(AtomicU32::new(0));
    let mut driver =
        Scripted { program: program.clone(), version: "1.0", tier: Isolation::Kvm, boots };
    let mut prober = Prober { config: &config, tag: "test", again: false };
    let mut booted = 0;
    // Asks whether the driver works, and expects a new boot or an old verdict.
    macro_rules! asked {
        ($anew:expr, $works:expr) => {
            let (remembered, tried) = prober.boot_once(Box::new(driver.clone())).await;
            booted += u32::from($anew);
            assert_eq!(driver.boots.load(SeqCst), booted, "boots");
            assert_eq!(remembered.is_none(), $anew);
            assert_eq!(tried.is_ok(), $works);
            if let Err(error) = tried {
                assert_eq!(format!("{error:#}"), "starting it: it is broken");
            }
        };
    }
    asked!(true, false);
    asked!(false, false);
    // The outcome follows the program, from broken to working and back.
    install(&program, "works");
    asked!(true, true);
    asked!(false, true);
    install(&program, "fails");
    asked!(true, false);
    // Overwriting the same file also counts as a change.
    fs::write(&program, "works").unwrap();
    asked!(true, true);
    driver.tier = Isolation::Jailed;
    asked!(true, true);
    driver.version = "1.1";
    asked!(true, true);
    asked!(false, true);
    install(&config.initramfs(), "another initramfs");
    asked!(true, true);
    asked!(false, true);
    prober.again = true;
    asked!(true, true);
    asked!(true, true);
    prober.again = false;
    asked!(false, true);
    // A file of another version, or a torn one, counts as no outcome.
    fs::write(dir.path().join("scripted-probe"), "works boot-of-before").unwrap();
    asked!(true, true);
}
