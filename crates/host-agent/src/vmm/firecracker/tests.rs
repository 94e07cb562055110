//! Tests of the driver with a real Firecracker and its jailer, named by `WRENN_TEST_FIRECRACKER`.
//! They need root and a `/dev/kvm` that opens. The guest is a loop of one instruction that waits;
//! everything outside the guest is as in production.

use super::*;
use crate::config::FirecrackerChoice;
use crate::vmm::{Metadata, VmmRecord};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use types::resources::Resources;

const MEMORY_MIB: u32 = 16;
const BYTES: u64 = (MEMORY_MIB as u64) << 20;
/// Bytes that a file system may need for the block map of a file.
const SLACK: u64 = 1 << 20;

/// Machine code of `hlt` and a jump back to it.
const WAITS: &[u8] = &[0xf4, 0xeb, 0xfd];
/// Machine code of a jump to itself.
const SPINS: &[u8] = &[0xeb, 0xfe];
/// Machine code of `ud2`, which no handler takes, so that the processor shuts down.
const ENDS: &[u8] = &[0x0f, 0x0b];

/// Returns a kernel: an ELF file with a single segment at 1 MiB.
fn kernel(code: &[u8]) -> Vec<u8> {
    const AT: u64 = 1 << 20;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut half = |numbers: &[u16]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    half(&[2, 62, 1, 0]); // executable, x86-64, version
    for number in [AT, 64, 0] {
        elf.extend(number.to_le_bytes()); // entry, program headers, section headers
    }
    elf.extend([0; 4]);
    for number in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(number.to_le_bytes()); // sizes and counts of the headers
    }
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // loaded, read and executed
    for number in [120, AT, AT, code.len() as u64, code.len() as u64, 4096] {
        elf.extend(number.to_le_bytes()); // offset, addresses, sizes, alignment
    }
    elf.extend(code);
    elf
}

struct Setup {
    dir: tempfile::TempDir,
    driver: Firecracker,
}

fn processes_of(name: &str, dir: &Path) -> Vec<i32> {
    sys::processes_of(name, dir, &dir.join(crate::vmm::OWN))
}

/// Returns `None`, and logs the reason, if the environment has no Firecracker to test.
fn setup() -> Option<Setup> {
    let named = std::env::var_os("WRENN_TEST_FIRECRACKER").filter(|path| !path.is_empty());
    let Some(path) = named else {
        tracing::warn!("skipped: WRENN_TEST_FIRECRACKER names no Firecracker");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let boot = dir.path().join("images/boot");
    fs::create_dir_all(&boot).unwrap();
    fs::write(boot.join("vmlinux"), kernel(WAITS)).unwrap();
    fs::write(boot.join("initramfs"), [7; 4096]).unwrap();
    let config = crate::Config {
        dir: dir.path().to_owned(),
        network: String::new(),
        ready_networks: 0,
        dns: Vec::new(),
        driver: crate::DriverChoice::Firecracker,
        firecracker: FirecrackerChoice {
            firecracker: Some(path.into()),
            any_version: true,
            ..FirecrackerChoice::default()
        },
        memory_mib: 0,
        ready_memory_percent: 0,
        vcpus: 0,
        disk_mib: 0,
        registries: crate::images::settings::Registries::default(),
        store: None,
        connections: 1,
        log_limits: crate::config::LogLimits::default(),
    };
    let driver = Firecracker::find(&config, &Tasks::default()).unwrap();
    Some(Setup { dir, driver })
}

impl Setup {
    fn folder(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn spec(&self, name: &str) -> Spec {
        Spec {
            name: name.to_owned(),
            resources: Resources { vcpus: 1, memory_mib: MEMORY_MIB, disk_mib: 1 },
            dir: self.folder(name),
            disks: None,
            tap: None,
            namespace: None,
            uid: 2_100_000,
            cgroups: Vec::new(),
            metadata: Metadata::default(),
            kernel_args: Vec::new(),
        }
    }

    /// Returns the state that Firecracker reports.
    async fn state(&self, name: &str) -> String {
        let jail = Jail::of(&self.driver.programs, &self.folder(name), name, 0);
        let said = self.driver.api.get(&jail.root, "/").await.unwrap();
        said["state"].as_str().unwrap().to_owned()
    }

    /// Saves a frozen machine: the state of its devices, and its memory as a layer.
    async fn capture(&self, machine: &dyn Machine, number: u32) -> (PathBuf, Layer) {
        let state = self.dir.path().join(format!("state-{number}"));
        let memory = machine.save(File::create_new(&state).unwrap(), BYTES).await.unwrap();
        let pages = self.dir.path().join(format!("pages-{number}"));
        let file = File::create_new(&pages).unwrap();
        let (hash, _) = memory.unwrap().write(&[], &[], file).unwrap();
        (state, Layer::open(File::open(pages).unwrap(), &hash).unwrap())
    }
}

#[tokio::test]
async fn jailed_vm_boots_freezes_snapshots_and_restores() {
    let Some(setup) = setup() else { return };
    let path = setup.driver.programs.firecracker.clone();
    let machine = setup.driver.boot(setup.spec("one")).await.unwrap();
    assert_eq!(setup.state("one").await, "Running");
    let pid = machine.record().pid;
    let root = fs::metadata(format!("/proc/{pid}/root")).unwrap();
    let jail = Jail::of(&setup.driver.programs, &setup.folder("one"), "one", 2_100_000);
    assert_eq!(root.ino(), fs::metadata(&jail.root).unwrap().ino(), "it is not in its jail");
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 2_100_000);
    // A running machine cannot be saved, and the attempt harms nothing.
    let failed = machine.save(tempfile::tempfile().unwrap(), BYTES).await;
    assert!(failed.is_err());
    for _ in 0..2 {
        machine.freeze().await.unwrap();
        assert_eq!(setup.state("one").await, "Paused");
    }
    let (state, layer) = setup.capture(&*machine, 1).await;
    assert!(fs::metadata(&state).unwrap().len() > 1000);
    machine.thaw().await.unwrap();
    machine.freeze().await.unwrap();
    let (_, again) = setup.capture(&*machine, 2).await;
    let held = |layer: &Layer| {
        let mut pages = std::collections::BTreeMap::new();
        let add = |first: u64, data: Result<&[u8], u32>| {
            let data = data.unwrap_or_default().chunks_exact(4096).enumerate();
            pages.extend(data.map(|(n, page)| (first + n as u64, page.to_vec())));
            Ok(())
        };
        layer.each(add).unwrap();
        pages
    };
    // The kernel is at its place in the first and in the later save.
    for layer in [&layer, &again] {
        assert_eq!(held(layer)[&256][..3], WAITS[..]);
    }
    // Another agent finds the machine by its record, and its processes by its folder.
    let record: VmmRecord = machine.record();
    let mut newer = setup.driver;
    newer.programs.firecracker = PathBuf::from("/usr/bin/firecracker-v9.9.9");
    let found = newer.adopt(Found {
        record: &record,
        name: "one",
        dir: &setup.dir.path().join("one"),
        uid: 2_100_000,
        namespace: None,
        metadata: Metadata::default(),
    });
    let found = found.unwrap();
    newer.programs.firecracker = path;
    let setup = Setup { dir: setup.dir, driver: newer };
    assert_eq!(processes_of("one", &setup.folder("one")), [pid]);
    assert_eq!(processes_of("one", &setup.folder("other")), [] as [i32; 0]);
    found.thaw().await.unwrap();
    assert_eq!(setup.state("one").await, "Running");
    crate::vmm::kill_named("one", &setup.folder("one"), &setup.folder("one")).await.unwrap();
    assert_eq!(found.ended().await, "the VMM ended");
    // The saved machine is restored, by itself and with a layer above it.
    let images = setup.folder("memory");
    let image = memory::image_at(&images.join("one"), &[layer], BYTES).unwrap();
    let image = Arc::new(image);
    for (name, above) in [("two", Vec::new()), ("three", vec![again])] {
        let (image, state) = (Arc::clone(&image), File::open(&state).unwrap());
        let saved = Saved { image, above: Arc::new(above), state };
        let back = setup.driver.restore(setup.spec(name), saved).await.unwrap();
        assert_eq!(setup.state(name).await, "Paused");
        back.thaw().await.unwrap();
        back.freeze().await.unwrap();
        let changed = back.save(tempfile::tempfile().unwrap(), BYTES).await.unwrap().unwrap();
        let whole = changed.whole(|| unreachable!("nothing is asked for below it")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let (hash, _) = whole.write(&[], &[], file.reopen().unwrap()).unwrap();
        let layer = Layer::open(file.reopen().unwrap(), &hash).unwrap();
        assert_eq!(held(&layer)[&256][..3], WAITS[..], "{name}");
        back.kill().await.unwrap();
        assert!(!back.record().is_alive());
    }
}

#[tokio::test]
async fn machine_in_a_renamed_folder_answers_and_is_saved() {
    let Some(setup) = setup() else { return };
    let machine = setup.driver.boot(setup.spec("ready")).await.unwrap();
    machine.freeze().await.unwrap();
    let (began, dir) = (setup.folder("ready"), setup.dir.path().join("claimed"));
    fs::rename(&began, &dir).unwrap();
    let metadata = Metadata { capsule: "claimed".to_owned(), template: "base".to_owned() };
    let moved = machine.moved(&dir, &metadata).await.unwrap();
    drop(machine);
    assert!(moved.is_stopped().await.unwrap());
    moved.thaw().await.unwrap();
    moved.freeze().await.unwrap();
    let (_, layer) = setup.capture(&*moved, 1).await;
    assert!(layer.pages().next().is_some());
    // The next agent finds the machine by its first name.
    let record = moved.record();
    let found = Found {
        record: &record,
        name: "ready",
        dir: &dir,
        uid: 2_100_000,
        namespace: None,
        metadata,
    };
    let found = setup.driver.adopt(found).unwrap();
    assert!(found.is_stopped().await.unwrap());
    let processes = sys::processes_of("ready", &began, &dir.join(crate::vmm::OWN));
    assert_eq!(processes, [record.pid]);
    found.kill().await.unwrap();
}

#[test]
fn jail_is_found_after_its_capsules_folder_is_renamed() {
    let dir = tempfile::tempdir().unwrap();
    let own = rustix::process::geteuid().as_raw();
    let programs = Programs { firecracker: "/bin/firecracker".into(), jailer: None };
    let [ready, claimed] = ["ready", "claimed"].map(|name| dir.path().join(name));
    let jail = Jail::of(&programs, &ready, "ready", own);
    jail.make().unwrap();
    fs::write(jail.root.join("file"), "kept").unwrap();
    fs::rename(&ready, &claimed).unwrap();
    let found = Jail::found(&claimed, "ready", own).unwrap();
    for jail in [jail.moved(&claimed), found] {
        assert_eq!(fs::read(jail.root.join("file")).unwrap(), b"kept");
        assert_eq!(jail.own, claimed.join(crate::vmm::OWN));
        assert_eq!(jail.name, "ready");
    }
}

#[test]
fn restore_writes_at_most_its_claim() {
    let dir = tempfile::tempdir().unwrap();
    let pages = BYTES / crate::snapshot::layer::PAGE as u64;
    let layer = |name: &str, fill: u8| {
        let data = tempfile::tempfile().unwrap();
        data.write_all_at(&vec![fill; usize::try_from(BYTES).unwrap()], 0).unwrap();
        let touched = Vec::from([std::ops::Range { start: 0, end: pages }]);
        let memory = memory::Memory::of_changes(data, None, pages, touched);
        let path = dir.path().join(name);
        let (hash, _) = memory.write(&[], &[], File::create_new(&path).unwrap()).unwrap();
        Layer::open(File::open(path).unwrap(), &hash).unwrap()
    };
    let blocks = |name: &str| dir.path().join(name).metadata().unwrap().blocks() * 512;
    let inode = |name: &str| dir.path().join(name).metadata().unwrap().ino();
    let image = memory::image_at(&dir.path().join("image"), &[layer("one", 1)], BYTES).unwrap();
    assert!(blocks("image") <= most_restored(BYTES, false) + SLACK);
    let above = [layer("two", 2)];
    // A machine that maps the image, and another that is filled, write nothing.
    for (name, above) in [("alone", &[][..]), ("paged", &above[..])] {
        let changes = Changes(dir.path().join(name));
        fs::create_dir(&changes.0).unwrap();
        make_base(&changes, &image, above, (!above.is_empty(), BYTES)).unwrap();
        assert_eq!(inode(&format!("{name}/memory")), inode("image"));
    }
    assert_eq!(inode("paged/above-0.pages"), inode("two"));
    let copied = Changes(dir.path().join("copied"));
    fs::create_dir(&copied.0).unwrap();
    make_base(&copied, &image, &above, (false, BYTES)).unwrap();
    let written = ["image", "copied/memory"].map(blocks).iter().sum::<u64>();
    assert!(written <= most_restored(BYTES, true) + SLACK, "{written}");
    assert!(written > BYTES, "{written}");
}

#[tokio::test]
async fn guest_end_is_distinguished_from_vmm_end() {
    let Some(setup) = setup() else { return };
    let machine = setup.driver.boot(setup.spec("one")).await.unwrap();
    crate::vmm::kill_record(&machine.record()).await.unwrap();
    assert_eq!(machine.ended().await, "the VMM ended");
    fs::write(setup.dir.path().join("images/boot/vmlinux"), kernel(ENDS)).unwrap();
    let machine = setup.driver.boot(setup.spec("two")).await.unwrap();
    assert_eq!(machine.ended().await, "the guest ended", "{}", machine.log_tail());
}

#[tokio::test]
async fn halted_vcpu_is_distinguished_from_running_one() {
    let Some(setup) = setup() else { return };
    // The guest begins with interrupts off.
    let machine = setup.driver.boot(setup.spec("halted")).await.unwrap();
    let threads = machine.vcpus().unwrap();
    let limit = Instant::now() + PROMPT;
    let waits = loop {
        if let Some(waits) = threads.waits() {
            break waits;
        }
        assert!(Instant::now() < limit, "the processor does not come to rest");
        tokio::task::yield_now().await;
    };
    assert!(!machine.is_stopped().await.unwrap());
    assert_eq!(threads.waits(), Some(waits));
    machine.freeze().await.unwrap();
    assert!(machine.is_stopped().await.unwrap());
    machine.kill().await.unwrap();
    fs::write(setup.dir.path().join("images/boot/vmlinux"), kernel(SPINS)).unwrap();
    let machine = setup.driver.boot(setup.spec("spins")).await.unwrap();
    assert_eq!(machine.vcpus().unwrap().waits(), None);
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn firecracker_errors_are_passed_on() {
    let Some(setup) = setup() else { return };
    let machine = setup.driver.boot(setup.spec("one")).await.unwrap();
    let jail = Jail::of(&setup.driver.programs, &setup.folder("one"), "one", 0);
    for (path, body, told) in [
        ("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 16 }), "not supported after"),
        ("/actions", json!({ "action_type": "InstanceStart" }), "not supported after"),
        ("/entropy", json!({ "colour": 1 }), "colour"),
        ("/nowhere", json!({}), "nowhere"),
    ] {
        let error = setup.driver.api.put(&jail.root, path, body).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("PUT {path}: 400")), "{error}");
        assert!(error.contains(told), "{path}: {error}");
    }
    machine.kill().await.unwrap();
    // An invalid state is refused, and the process that was to load it is gone.
    let image = memory::image_at(&setup.folder("memory").join("one"), &[], BYTES).unwrap();
    let state = setup.dir.path().join("state");
    fs::write(&state, [1; 2000]).unwrap();
    let state = File::open(state).unwrap();
    let saved = Saved { image: Arc::new(image), above: Arc::default(), state };
    let error = setup.driver.restore(setup.spec("two"), saved).await.err().unwrap();
    assert_eq!(error.what, "cannot load the saved machine");
    let why = error.source.unwrap().to_string();
    assert!(why.contains("PUT /snapshot/load: 400"), "{why}");
    assert_eq!(processes_of("two", &setup.folder("two")), [] as [i32; 0]);
}

#[test]
fn read_only_disks_are_configured_before_placeholders() {
    let file = || tempfile::tempfile().unwrap();
    let spec = |layers: usize| Spec {
        name: "one".to_owned(),
        resources: Resources { vcpus: 1, memory_mib: MEMORY_MIB, disk_mib: 1 },
        dir: PathBuf::new(),
        disks: Some(crate::vmm::Disks {
            image: file(),
            own: file(),
            read_only: (0..layers).map(|_| file()).collect(),
            placeholders: placeholder::COUNT,
        }),
        tap: None,
        namespace: None,
        uid: 2_100_000,
        cgroups: Vec::new(),
        metadata: Metadata::default(),
        kernel_args: vec!["wrenn.lower=1/1".to_owned()],
    };
    let drives = |layers: usize| -> Vec<String> {
        let all = config(&spec(layers), "line").into_iter();
        let drives = all.filter_map(|(path, body)| {
            let id = path.strip_prefix("/drives/")?.to_owned();
            Some(format!("{id} {} {}", body["path_on_host"], body["is_read_only"]))
        });
        drives.collect()
    };
    assert_eq!(
        drives(2),
        [
            "image \"image.ext4\" true",
            "disk \"disk.ext4\" false",
            "layer_1 \"layer-1.ext4\" true",
            "layer_2 \"layer-2.ext4\" true",
            "spare_0 \"spare_0\" true",
            "spare_1 \"spare_1\" false",
        ]
    );
    // A machine without such disks has the drives of earlier versions.
    let before = drives(0);
    assert_eq!((before.len(), before[2].as_str()), (4, "spare_0 \"spare_0\" true"));
    let line = crate::vmm::with_args("quiet".to_owned(), &spec(0).kernel_args);
    assert_eq!(line, "quiet wrenn.lower=1/1");
}

#[test]
fn read_only_disks_are_in_the_root_under_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let own = rustix::process::geteuid().as_raw();
    for name in ["image.ext4", "disk.ext4", "layer-1.ext4"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let programs = Programs { firecracker: "/bin/firecracker".into(), jailer: None };
    let jail = Jail::of(&programs, dir.path(), "one", own);
    jail.make().unwrap();
    let open = |name: &str| File::open(dir.path().join(name)).unwrap();
    let spec = Spec {
        name: "one".to_owned(),
        resources: Resources { vcpus: 1, memory_mib: MEMORY_MIB, disk_mib: 1 },
        dir: dir.path().to_owned(),
        disks: Some(crate::vmm::Disks {
            image: open("image.ext4"),
            own: open("disk.ext4"),
            read_only: vec![open("layer-1.ext4")],
            placeholders: placeholder::COUNT,
        }),
        tap: None,
        namespace: None,
        uid: own,
        cgroups: Vec::new(),
        metadata: Metadata::default(),
        kernel_args: Vec::new(),
    };
    give_devices(&jail, &spec).unwrap();
    let layer = jail.root.join("layer-1.ext4");
    assert_eq!(fs::read(&layer).unwrap(), b"layer-1.ext4");
    assert_eq!(layer.metadata().unwrap().nlink(), 2);
}
