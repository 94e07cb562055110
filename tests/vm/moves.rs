//! A real guest that is paused with its memory on one host and resumed on another. The second host
//! fetches the template from the store too.

use crate::small;
use reqwest::Method;
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tests::{Driver, Leftovers, Platform, binary, eventually, set_guests, told};

const NETWORK: &str = "10.196.7.0/24";

/// Second host on this machine, with an address range of its own and no template.
pub(crate) struct Second {
    dir: TempDir,
    process: Child,
    address: String,
    vars: Vec<(String, String)>,
}

impl Second {
    pub(crate) fn start(platform: &Platform, store: &str, token: &str) -> Self {
        Self::start_with(platform, token, &[("WRENN_STORE", store)])
    }

    /// Starts a host with variables of its own.
    pub(crate) fn start_with(platform: &Platform, token: &str, vars: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("images/templates")).unwrap();
        let boot = platform.dir().join("images/boot").canonicalize().unwrap();
        std::os::unix::fs::symlink(boot, dir.path().join("images/boot")).unwrap();
        let vars: Vec<_> = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let at = (dir.path(), "127.0.0.1:0");
        let (process, address) = run(platform, at, Some(token), &vars);
        Self { dir, process, address, vars }
    }

    /// Kills the agent, as `kill -9` does. Its machines run on.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts the agent again, at its former address.
    pub(crate) fn again(&mut self, platform: &Platform) {
        let at = (self.dir.path(), self.address.as_str());
        self.process = run(platform, at, None, &self.vars).0;
    }

    /// Finds everything that belongs to the host on this machine.
    pub(crate) fn leftovers(&self) -> Leftovers {
        Leftovers::of(self.dir.path())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let mut clean = Command::new(binary("wrenn"));
        clean.arg("clean").env("WRENN_DIR", self.dir.path());
        set_guests(&mut clean);
        clean.env("WRENN_NETWORK", NETWORK);
        clean.env("WRENN_CLIENT_FILE", self.dir.path().join("none"));
        let cleaned = clean.status().unwrap();
        assert!(cleaned.success() || std::thread::panicking());
    }
}

/// Runs an agent in a folder, at an address. A token lets it register. Returns the agent's address.
fn run(
    platform: &Platform,
    (dir, listen): (&Path, &str),
    token: Option<&str>,
    vars: &[(String, String)],
) -> (Child, String) {
    let mut command = Command::new(binary("wrenn"));
    command.args(["agent", "--agent-listen", listen, "--control-plane", platform.url()]);
    command.env("WRENN_DIR", dir);
    if let Some(token) = token {
        command.env("WRENN_REGISTER_TOKEN", token);
    }
    set_guests(&mut command);
    command.envs(vars.iter().map(|(k, v)| (k, v))).env("WRENN_NETWORK", NETWORK);
    let log = dir.join("agent.log");
    command.stdin(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
    let mut process = command.spawn().unwrap();
    let address = told(&log, "the host agent serves address=", &mut process);
    (process, address.trim_matches('"').to_owned())
}

#[tokio::test]
async fn capsule_resumes_on_another_host_with_its_memory() {
    let store = tempfile::tempdir().unwrap();
    let folder = store.path().to_str().unwrap();
    let platform = Platform::start(Driver::Guests, &[("WRENN_STORE", folder)]).await;
    let client = platform.client();
    let id = client.create(&small()).await;
    let counting = "i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.1; done";
    let started = json!({ "cmd": "sh", "args": ["-c", counting], "background": true });
    client.post(&format!("/v1/capsules/{id}/exec"), &started).await.expect(202);
    client.out(&id, "echo disk > /tmp/kept; head -c 1000000 /dev/urandom > /tmp/random").await;
    let sum = client.out(&id, "sha256sum /tmp/random; cat /proc/sys/kernel/random/boot_id").await;
    eventually("it counts", || async {
        (client.out(&id, "cat /dev/shm/count").await.trim().parse::<u32>().ok()? > 3).then_some(())
    })
    .await;
    client.pause(&id).await;
    let stored =
        async || client.get(&format!("/v1/capsules/{id}")).await.expect(200)["stored"] == true;
    eventually("it is in the store", || async { stored().await.then_some(()) }).await;
    eventually("the template is in the store", || async {
        store.path().join("platform/trees/templates/base").exists().then_some(())
    })
    .await;
    let new = json!({ "tags": ["second"] });
    let invited = client.post("/v1/hosts", &new).await.expect(201);
    let token = invited["registration_token"].as_str().unwrap();
    let second = Second::start(&platform, folder, token);
    // The first host takes no more capsules, so the capsule resumes on the second.
    let hosts = client.get("/v1/hosts").await.expect(200);
    let local = hosts["items"].as_array().unwrap().iter().find(|h| h["name"] == "local").unwrap();
    let local = local["id"].as_str().unwrap();
    client.post(&format!("/v1/hosts/{local}/drain"), &json!({})).await.expect(200);
    let moved = client.change(&id, "resume", &json!({})).await;
    assert_eq!(moved["host_id"], invited["host"]["id"]);
    assert!(moved.get("booted").is_none(), "{moved}");
    let count = async || client.out(&id, "cat /dev/shm/count").await.trim().parse::<u32>().unwrap();
    let first = count().await;
    assert!(first > 3);
    eventually("it counts on", || async { (count().await > first).then_some(()) }).await;
    assert_eq!(client.out(&id, "cat /tmp/kept").await, "disk\n");
    assert_eq!(
        client.out(&id, "sha256sum /tmp/random; cat /proc/sys/kernel/random/boot_id").await,
        sum
    );
    // Two concurrent creates need the template, which this host lacks. The host fetches it once.
    let body = small();
    let (one, two) = tokio::join!(client.create(&body), client.create(&body));
    for id in [&one, &two] {
        assert_eq!(client.out(id, "echo up").await, "up\n");
    }
    assert!(second.dir.path().join("images/templates/base/rootfs.erofs").exists());
    for id in [&id, &one, &two] {
        client.delete(&format!("/v1/capsules/{id}")).await.expect(204);
    }
    let gone = client
        .request(Method::DELETE, &format!("/v1/hosts/{}", moved["host_id"].as_str().unwrap()));
    assert_eq!(client.send(gone).await.status.as_u16(), 204);
    drop(second);
    platform.finish();
}
