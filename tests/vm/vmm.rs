//! Confinement of a VMM: unprivileged, alone in its namespaces, limited, and with bounded output.

use crate::capsule;
use crate::ready::claimed;
use std::fs;

#[tokio::test]
async fn vmm_process_has_no_privileges_or_network_and_is_limited() {
    let (platform, client, id) = claimed().await;
    let pids = platform.machine(&id);
    assert_eq!(pids.len(), 1, "{pids:?}");
    let proc = format!("/proc/{}", pids[0]);
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for ids in [field("Uid"), field("Gid")] {
        assert!(ids.iter().all(|id| id.parse::<u32>().unwrap() >= 2_000_000), "{ids:?}");
    }
    assert_eq!(field("CapEff"), ["0000000000000000"]);
    assert_eq!(field("CapPrm"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs"), ["1"]);
    assert_eq!(field("Seccomp"), ["2"]);
    assert_eq!(field("Groups"), [] as [String; 0]);
    let jailed = tests::firecracker().is_some();
    let kinds = ["net", "ipc", "uts", "mnt", "pid"];
    for kind in &kinds[..if jailed { 5 } else { 3 }] {
        let (ours, its) = (format!("/proc/self/ns/{kind}"), format!("{proc}/ns/{kind}"));
        assert_ne!(fs::read_link(ours).unwrap(), fs::read_link(its).unwrap(), "{kind}");
    }
    let links = fs::read_to_string(format!("{proc}/net/dev")).unwrap();
    if jailed {
        // Firecracker opens its tap by name, and so runs in the capsule's namespace. Its root holds
        // only files that it opens.
        assert!(links.contains("tap0"), "{links}");
        let root = fs::read_dir(format!("{proc}/root")).unwrap();
        let mut found: Vec<_> = root.flatten().map(|e| e.file_name()).collect();
        found.sort();
        let (kernel, memory) = (["initramfs", "kernel"], ["memory"]);
        let began = if found.contains(&"kernel".into()) { &kernel[..] } else { &memory[..] };
        let mut wanted = vec!["api.sock", "dev", "disk.ext4", "firecracker", "firecracker.pid"];
        wanted.extend(["image.ext4", "log", "metrics", "run", "spare_0", "spare_1"]);
        wanted.extend(began);
        wanted.sort_unstable();
        assert_eq!(found, wanted);
        let limits = fs::read_to_string(format!("{proc}/limits")).unwrap();
        assert!(limits.contains("Max open files            1024"), "{limits}");
    } else {
        assert_eq!(links.lines().count(), 3, "its namespace holds more than lo: {links}");
    }
    let groups = fs::read_to_string(format!("{proc}/cgroup")).unwrap();
    assert!(groups.contains(&platform.machine_name(&id)), "{groups}");
    let args = fs::read_to_string(format!("{proc}/cmdline")).unwrap();
    let token = platform.dir().join(format!("capsules/{id}/capsule.json"));
    let record: serde_json::Value = serde_json::from_slice(&fs::read(token).unwrap()).unwrap();
    let token = record["envd_token"].as_str().unwrap();
    let vars = fs::read_to_string(format!("{proc}/environ")).unwrap();
    assert!(vars.is_empty() || !jailed, "{vars}");
    assert!(token.len() > 64 && !args.contains(token) && !vars.contains(token));
    // Other users of this machine see nothing of a capsule's folder.
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(platform.dir().join("capsules")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    client.out(&id, "true").await;
    platform.finish();
}

#[tokio::test]
async fn conflicting_or_invalid_network_range_is_refused_with_its_reason() {
    let (platform, _, _) = capsule().await;
    let other = tempfile::tempdir().unwrap();
    let slot = std::env::var("NEXTEST_TEST_GLOBAL_SLOT").unwrap_or_else(|_| "200".to_owned());
    for (range, told) in [
        (format!("10.199.{slot}.0/24"), "choose another range"),
        ("10.0.0.0/8".to_owned(), "choose another range"),
        ("10.1.0.0/31".to_owned(), "must be between /8 and /30"),
        ("nonsense".to_owned(), "is not an IPv4 range"),
    ] {
        let mut command = platform.wrenn();
        command.args(["agent", "--agent-listen", "127.0.0.1:0", "--driver", "tcg"]);
        command.env("WRENN_DIR", other.path()).env("WRENN_NETWORK", &range);
        command.env("WRENN_REGISTER_TOKEN", "none is looked at before the range");
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(told), "{range}: {said}");
        assert!(said.contains("WRENN_NETWORK"), "{range}: {said}");
    }
    platform.finish();
}

#[tokio::test]
async fn guest_console_output_is_kept_up_to_a_bound() {
    let (platform, client, id) = capsule().await;
    let flood = "sudo sh -c 'echo first-words > /dev/console'; \
        sudo timeout 3 sh -c 'yes flood > /dev/console'; sudo sh -c 'echo last-words > /dev/console'";
    client.sh(&id, flood).await;
    let logs = client.get(&format!("/v1/capsules/{id}/logs")).await.expect(200);
    let logs = logs.as_str().unwrap();
    assert!(logs.len() <= 64 * 1024, "{} bytes", logs.len());
    assert!(logs.contains("last-words"), "{}", &logs[logs.len().saturating_sub(200)..]);
    let folder = platform.dir().join(format!("capsules/{id}"));
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".log") {
            assert!(entry.metadata().unwrap().len() <= 128 * 1024, "{name} grew");
        }
    }
    platform.finish();
}
