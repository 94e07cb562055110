//! Guests that end by themselves. Every way counts as an end, and no such guest is kept as a
//! snapshot.

use crate::{capsule, small};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::json;
use std::fs;
use std::path::Path;
use tests::{Client, Platform, eventually, processes_of, signal};

/// The host's reason for a guest whose processors never run again.
const HALTED: &str = "the guest ended: its vCPUs are halted";

/// Returns a command by which root calls `reboot(2)`.
fn reboot(command: &str) -> String {
    format!("sudo python3 -c 'import ctypes; ctypes.CDLL(None).reboot({command})'")
}

/// Returns a command that stops every processor, with interrupts off (`LINUX_REBOOT_CMD_HALT`).
fn halt() -> String {
    reboot("0xcdef0123")
}

/// Returns a command that root gives to the kernel by its SysRq key.
fn sysrq(key: char) -> String {
    format!("sudo sh -c 'echo {key} > /proc/sysrq-trigger'")
}

/// Returns a command by which root resets the machine with a triple fault.
fn triple_fault() -> String {
    format!("sudo sh -c 'echo triple > /sys/kernel/reboot/type'; {}", reboot("0x01234567"))
}

/// Starts an endless command.
async fn unleash(client: &Client, id: &str, script: &str) {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &body).await.expect(202);
}

/// Waits until a capsule is known to have ended. Returns the reason.
async fn why_ended(client: &Client, id: &str) -> String {
    let path = format!("/v1/capsules/{id}");
    let seen = eventually("the capsule is known to have ended", || async {
        let seen = client.get(&path).await.expect(200);
        (seen["status"] == "error").then_some(seen)
    })
    .await;
    seen["error"].as_str().unwrap().to_owned()
}

/// Waits until a guest's console contains a word.
async fn last_word(client: &Client, id: &str, word: &str) {
    let path = format!("/v1/capsules/{id}/logs");
    eventually("the guest says its last word", || async {
        let logs = client.get(&path).await;
        logs.body.as_str().unwrap_or_default().contains(word).then_some(())
    })
    .await;
}

/// Counts a capsule's own snapshots.
fn kept(platform: &Platform, id: &str) -> usize {
    let kept = platform.dir().join(format!("capsules/{id}/kept"));
    fs::read_dir(kept).map_or(0, Iterator::count)
}

#[tokio::test]
async fn every_kind_of_guest_end_is_reported_with_its_reason() {
    let (platform, client, first) = capsule().await;
    let ended = "the guest ended";
    let ways = [
        (halt(), 1, HALTED),
        (halt(), 2, HALTED),
        (sysrq('o'), 1, ended),
        (reboot("0x4321fedc"), 1, ended), // power off
        (reboot("0x01234567"), 1, ended), // restart
        (triple_fault(), 1, ended),
        (sysrq('c'), 1, ended), // panic
    ];
    let mut running = vec![first];
    for (_, vcpus, _) in &ways[1..] {
        running.push(
            client.create(&json!({ "memory_mib": 256, "disk_mib": 256, "vcpus": vcpus })).await,
        );
    }
    let ending = ways.iter().zip(&running).map(|((way, _, told), id)| {
        let client = &client;
        async move {
            // A command under way must end too.
            let waits = json!({ "cmd": "sh", "args": ["-c", format!("{way}; sleep 3600")] });
            let under_way = client.post(&format!("/v1/capsules/{id}/exec"), &waits).await;
            assert!(!under_way.status.is_success(), "{way}: {under_way:?}");
            let why = why_ended(client, id).await;
            assert!(why.contains(told), "{way}: {why}");
            let path = format!("/v1/capsules/{id}/exec");
            let exec = client.post(&path, &json!({ "cmd": "true" })).await;
            exec.refuses(409, "capsule_not_running", "the capsule is error");
            eventually("the machine is gone", || async {
                processes_of(id).is_empty().then_some(())
            })
            .await;
        }
    });
    futures::future::join_all(ending).await;
    platform.finish();
}

#[tokio::test]
async fn pause_and_snapshot_of_halted_guest_are_refused() {
    let (platform, client, id) = capsule().await;
    let other = client.create(&small()).await;
    for id in [&id, &other] {
        unleash(&client, id, &halt()).await;
    }
    for id in [&id, &other] {
        last_word(&client, id, "System halted").await;
    }
    let paused = client.post(&format!("/v1/capsules/{id}/pause"), &json!({})).await;
    assert!(!paused.status.is_success(), "{paused:?}");
    let taken = client.post("/v1/snapshots", &json!({ "capsule_id": other, "name": "dead" })).await;
    assert!(!taken.status.is_success(), "{taken:?}");
    for id in [&id, &other] {
        assert_eq!(why_ended(&client, id).await, HALTED);
    }
    assert_eq!(kept(&platform, &id), 0);
    let snapshots = client.get("/v1/snapshots").await.expect(200);
    assert_eq!(snapshots["items"], json!([]), "{snapshots}");
    platform.finish();
}

#[tokio::test]
async fn guest_end_during_pause_is_reported_and_saves_nothing() {
    let (platform, client, id) = capsule().await;
    // A pause lets requests under way end, and the guest ends with this request.
    let going = "touch /tmp/begun; sleep 1; echo o > /proc/sysrq-trigger";
    let body = json!({ "cmd": "sudo", "args": ["sh", "-c", going] });
    let exec = client.request(reqwest::Method::POST, &format!("/v1/capsules/{id}/exec"));
    let under_way = tokio::spawn(exec.json(&body).send());
    // The command waits for sudo, which is slow in an emulated guest.
    client.out(&id, "until test -e /tmp/begun; do sleep 0.05; done").await;
    let paused = client.post(&format!("/v1/capsules/{id}/pause"), &json!({})).await;
    assert!(!paused.status.is_success(), "{paused:?}");
    let _ = under_way.await.unwrap();
    let why = why_ended(&client, &id).await;
    assert!(why.contains("the guest ended"), "{why}");
    assert_eq!(kept(&platform, &id), 0);
    platform.finish();
}

#[tokio::test]
async fn stopped_or_silent_guest_is_not_reported_as_halted() {
    let (platform, client, stopped) = capsule().await;
    let silent = client.create(&small()).await;
    let halted = client.create(&small()).await;
    // The host gives the first guest no time, and the second guest does not listen. Both live.
    signal(processes_of(&stopped)[0], Signal::STOP);
    let deaf = "sudo sh -c 'ip link set eth0 down; sleep 25; ip link set eth0 up'";
    unleash(&client, &silent, deaf).await;
    unleash(&client, &halted, &halt()).await;
    // By the time that the third guest counts as halted, the first two were watched for as long.
    assert_eq!(why_ended(&client, &halted).await, HALTED);
    signal(processes_of(&stopped)[0], Signal::CONT);
    for id in [&stopped, &silent] {
        eventually("the guest answers again", || async {
            let body = json!({ "cmd": "true" });
            let exec = client.post(&format!("/v1/capsules/{id}/exec"), &body).await;
            (exec.status.as_u16() == 200).then_some(())
        })
        .await;
        assert_eq!(client.status(id).await, "running");
    }
    platform.finish();
}

/// Removes the power switch from a machine's description, as in a Firecracker's. Returns `None`
/// when the description has none.
fn without_power_switch(mut dsdt: Vec<u8>) -> Option<Vec<u8>> {
    let at = dsdt.windows(4).position(|name| name == b"_S5_")?;
    dsdt[at] = b'X';
    // A later revision replaces the machine's own table. The sum of all bytes must be 0.
    dsdt[24] += 1;
    dsdt[9] = 0;
    let sum = dsdt.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    dsdt[9] = sum.wrapping_neg();
    Some(dsdt)
}

/// Packs an archive that gives a guest's kernel another description of its machine
/// (`Documentation/admin-guide/acpi/initrd_table_override.rst`).
fn table_archive(dsdt: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    let entries: [(&str, u32, &[u8]); 5] = [
        ("kernel", 0o040_755, b""),
        ("kernel/firmware", 0o040_755, b""),
        ("kernel/firmware/acpi", 0o040_755, b""),
        ("kernel/firmware/acpi/dsdt.aml", 0o100_644, dsdt),
        ("TRAILER!!!", 0, b""),
    ];
    for (number, (name, mode, contents)) in (1_usize..).zip(entries) {
        archive.extend(b"070701");
        let mode = usize::try_from(mode).unwrap();
        let fields = [number, mode, 0, 0, 1, 0, contents.len(), 0, 0, 0, 0, name.len() + 1, 0];
        for field in fields {
            archive.extend(format!("{field:08x}").into_bytes());
        }
        archive.extend(name.as_bytes());
        archive.push(0);
        pad(&mut archive);
        archive.extend(contents);
        pad(&mut archive);
    }
    archive
}

/// Makes a folder of links to all files of another. A file on another disk is copied.
fn link_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            link_tree(&from, &to);
        } else {
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).unwrap();
        }
    }
}

/// Gives a platform images of its own, whose guests begin with `archive`.
fn change_initramfs(platform: &Platform, archive: &[u8]) {
    let own = platform.dir().join("images");
    let shared = fs::read_link(&own).unwrap();
    fs::remove_file(&own).unwrap();
    // The platform makes its images anew when one of them is missing.
    link_tree(&shared.join("store"), &own.join("store"));
    let initramfs = own.join(fs::read_link(shared.join("boot")).unwrap()).join("initramfs");
    let whole = [archive, &fs::read(&initramfs).unwrap()].concat();
    fs::remove_file(&initramfs).unwrap();
    fs::write(&initramfs, whole).unwrap();
}

#[tokio::test]
async fn vm_without_acpi_power_off_is_reset_by_init() {
    let (mut platform, client, id) = capsule().await;
    let read = "sudo base64 -w 0 /sys/firmware/acpi/tables/DSDT";
    let dsdt = STANDARD.decode(client.out(&id, read).await.trim()).unwrap();
    client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    if let Some(dsdt) = without_power_switch(dsdt) {
        platform.stop();
        change_initramfs(&platform, &table_archive(&dsdt));
        platform.resume().await;
    }
    let client = platform.client();
    let id = client.create(&small()).await;
    unleash(&client, &id, &sysrq('o')).await;
    let why = why_ended(&client, &id).await;
    assert!(why.contains("the guest ended") && why != HALTED, "{why}");
    last_word(&client, &id, "envd: the machine has no power switch").await;
    // The template's machine was made of images that no other test has, so it is removed.
    platform.stop();
    fs::remove_dir_all(platform.dir().join("golden")).unwrap();
    platform.finish();
}
