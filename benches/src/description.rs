//! A description of the machine in Markdown, for figures that somebody sends. The description holds
//! no name and no address of the machine.

use crate::table;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Cell of a fact that this machine does not tell.
const UNKNOWN: &str = "unknown";

/// Returns the description as a table, under a heading. `driver` runs the guests.
pub(crate) fn markdown(driver: &str) -> String {
    let head = ["machine", "found"].map(str::to_owned).to_vec();
    let facts = facts(driver).into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(facts).collect();
    format!("## Measured on\n\n{}\n", table::markdown(&lines))
}

fn facts(driver: &str) -> Vec<(&'static str, String)> {
    vec![
        ("processor", processor()),
        ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
        ("a virtual machine itself", of_cpu("flags").map_or(UNKNOWN.to_owned(), nested)),
        ("memory", memory()),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("system", system()),
        ("frequency governor", read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        ("/dev/kvm", kvm().to_owned()),
        ("driver of the guests", driver.to_owned()),
        ("QEMU", version("qemu-system-x86_64")),
        ("Firecracker", firecracker()),
        ("nginx", said(Command::new("nginx").arg("-v"))),
        ("Caddy", said(Command::new("caddy").arg("version"))),
        ("PostgreSQL", postgres()),
        ("Rust", version("rustc")),
        ("commit", commit()),
        ("date (UTC)", said(Command::new("date").args(["-u", "+%Y-%m-%d"]))),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or(UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

/// Returns a field of the first processor (`proc(5)`, `cpuinfo`).
fn of_cpu(field: &str) -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with(field))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn processor() -> String {
    of_cpu("model name").unwrap_or_else(|| UNKNOWN.to_owned())
}

/// Reports by the processor's flags whether a hypervisor runs the machine.
fn nested(flags: String) -> String {
    let nested = flags.split(' ').any(|flag| flag == "hypervisor");
    if nested { "yes" } else { "no" }.to_owned()
}

fn memory() -> String {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = kib.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(UNKNOWN.to_owned(), |kib| format!("{} MiB", kib >> 10))
}

fn system() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or(UNKNOWN.to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Tells whether KVM can be opened. A guest need not boot on it.
fn kvm() -> &'static str {
    match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => "opens",
        Err(_) if Path::new("/dev/kvm").exists() => "does not open",
        Err(_) => "missing",
    }
}

fn version(program: &str) -> String {
    said(Command::new(program).arg("--version"))
}

fn firecracker() -> String {
    let named = std::env::var_os("WRENN_TEST_FIRECRACKER");
    named.map_or("none named".to_owned(), |path| said(Command::new(path).arg("--version")))
}

/// Returns the newest version of PostgreSQL that is installed.
fn postgres() -> String {
    let found = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let names = found.filter_map(|entry| entry.file_name().into_string().ok());
    names.max_by_key(|name| name.parse::<u32>().ok()).unwrap_or_else(|| UNKNOWN.to_owned())
}

/// Returns the commit of this source, and whether files differ from it.
fn commit() -> String {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        said(git.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(args))
    };
    // Without changes, git prints nothing.
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let changed = if changed == UNKNOWN { "" } else { ", with changes" };
    format!("{}{changed}", git(&["rev-parse", "--short=12", "HEAD"]))
}

/// Returns the first line that a command prints, on whichever stream.
fn said(command: &mut Command) -> String {
    let Ok(out) = command.output() else { return "not installed".to_owned() };
    if !out.status.success() {
        return UNKNOWN.to_owned();
    }
    let text = if out.stdout.is_empty() { out.stderr } else { out.stdout };
    let text = String::from_utf8_lossy(&text);
    text.lines().next().map_or(UNKNOWN.to_owned(), |line| line.trim().to_owned())
}
