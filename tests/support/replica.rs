//! Further control plane beside a platform's own.

use crate::client::Client;
use crate::platform::{Platform, told};
use serde_json::Value;
use std::process::{Child, Stdio};

/// Running control plane over the platform's database or another one.
pub struct Replica {
    /// Its process.
    pub process: Child,
    /// URL of its API.
    pub url: String,
    /// Key in the control plane's client file.
    pub key: String,
}

impl Replica {
    /// Starts a replica of the platform's control plane.
    #[must_use]
    pub fn start(platform: &Platform) -> Self {
        Self::over(platform, &platform.database_url())
    }

    /// Starts a control plane over a database, with the platform's authority.
    #[must_use]
    pub fn over(platform: &Platform, database: &str) -> Self {
        Self::run(platform, database, true)
    }

    /// Starts a control plane over a database, without an authority.
    #[must_use]
    pub fn plain(platform: &Platform, database: &str) -> Self {
        Self::run(platform, database, false)
    }

    fn run(platform: &Platform, database: &str, secured: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (said, key) = (dir.path().join("said"), dir.path().join("client.json"));
        let mut command = platform.wrenn();
        command.args(["control-plane", "--listen", "127.0.0.1:0"]);
        if secured {
            platform.name_authority(&mut command);
        }
        command.env("DATABASE_URL", database).env("WRENN_CLIENT_FILE", &key);
        platform.set_vars(&mut command);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command.stdout(std::fs::File::create(&said).unwrap());
        let mut process = command.spawn().unwrap();
        let url = told(&said, "Wrenn serves ", &mut process);
        let file: Value = serde_json::from_slice(&std::fs::read(key).unwrap()).unwrap();
        Self { process, url, key: file["api_key"].as_str().unwrap().to_owned() }
    }

    /// Returns a client of the control plane, with its own key.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.url, &self.key)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
