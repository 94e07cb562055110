//! What each role is told: flags, each with its variable of the environment. The README's
//! table lists them; `main` reads them once.

use anyhow::Context;
use clap::Args;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where everything is kept.
#[derive(Args, Debug, Clone)]
pub(crate) struct Folder {
    /// Folder of everything that this machine keeps.
    #[arg(long = "dir", env = "WRENN_DIR", default_value = "/var/lib/wrenn")]
    pub dir: PathBuf,
}

/// How to log.
#[derive(Args, Debug, Clone)]
pub(crate) struct Log {
    /// Level, or levels by module as `info,host_agent=debug`.
    #[arg(long = "log", env = "WRENN_LOG", default_value = "info")]
    pub filter: String,
    /// Logs as JSON lines.
    #[arg(long = "log-json", env = "WRENN_LOG_JSON")]
    pub json: bool,
}

/// A host agent's settings.
#[derive(Args, Debug, Clone)]
pub(crate) struct Agent {
    /// Address of the host agent; loopback, since it demands no credentials.
    #[arg(
        id = "agent_listen",
        long = "agent-listen",
        env = "WRENN_AGENT_LISTEN_ADDR",
        default_value = "127.0.0.1:8001"
    )]
    pub listen: SocketAddr,
    /// Range for the capsules' links to the host, at least a /24.
    #[arg(long, env = "WRENN_NETWORK", default_value = "10.220.0.0/16")]
    pub network: String,
    /// Name servers of the guests.
    #[arg(long, env = "WRENN_DNS", default_value = "1.1.1.1,8.8.8.8", value_delimiter = ',')]
    pub dns: Vec<IpAddr>,
    /// `auto`, `kvm`, `tcg`, or `fake:ENVD` for tests without machines.
    #[arg(long, env = "WRENN_DRIVER", default_value = "auto")]
    pub driver: Driver,
    /// Memory that capsules may have together, in MiB; 0 is four fifths of the machine's.
    #[arg(long, env = "WRENN_MEMORY_MIB", default_value_t = 0)]
    pub memory_mib: u64,
    /// Requests and connections under way to one capsule at once; further ones are refused.
    #[arg(long, env = "WRENN_CAPSULE_CONNECTIONS", default_value_t = 1024)]
    pub connections: u32,
}

/// Which driver runs the machines.
#[derive(Debug, Clone)]
pub(crate) struct Driver(host_agent::DriverChoice);

impl FromStr for Driver {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        use host_agent::DriverChoice;
        Ok(Self(match text {
            "auto" => DriverChoice::Auto,
            "kvm" => DriverChoice::Kvm,
            "tcg" => DriverChoice::Tcg,
            other => match other.strip_prefix("fake:") {
                Some(envd) => DriverChoice::Fake { envd: envd.into() },
                None => return Err("must be auto, kvm, tcg or fake:ENVD".to_owned()),
            },
        }))
    }
}

impl Agent {
    /// The agent's own form of it.
    pub(crate) fn config(&self, dir: &Path) -> anyhow::Result<host_agent::Config> {
        anyhow::ensure!(
            self.listen.ip().is_loopback(),
            "WRENN_AGENT_LISTEN_ADDR must be a loopback address: the agent demands no credentials"
        );
        Ok(host_agent::Config {
            dir: dir.to_owned(),
            network: self.network.clone(),
            dns: self.dns.clone(),
            driver: self.driver.0.clone(),
            memory_mib: self.memory_mib,
            connections: self.connections,
        })
    }
}

/// A control plane's settings.
#[derive(Args, Debug, Clone)]
pub(crate) struct ControlPlane {
    /// Address of the API.
    #[arg(long = "listen", env = "WRENN_CP_LISTEN_ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// PostgreSQL, as `postgres://user:password@host/name`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Domains whose names `{port}-{capsule}.{domain}` lead to capsules; any by default.
    #[arg(long, env = "WRENN_DOMAINS", value_delimiter = ',')]
    pub domains: Vec<String>,
    /// URL whose host is the domain of capsules' names, as https://sandbox.example.com; by default
    /// https and the first of the domains, else http://localhost and the API's port.
    #[arg(long, env = "WRENN_PUBLIC_URL")]
    pub public_url: Option<String>,
}

impl ControlPlane {
    /// What the control plane is told, once it listens at an address.
    pub(crate) fn told(
        &self,
        database: sqlx::postgres::PgConnectOptions,
        agent_url: String,
        listening: SocketAddr,
    ) -> control_plane::Settings {
        let domain = self.domains.iter().find(|domain| !domain.is_empty());
        let public_url = self.public_url.clone().unwrap_or_else(|| match domain {
            Some(domain) => format!("https://{domain}"),
            None => format!("http://localhost:{}", listening.port()),
        });
        control_plane::Settings { database, agent_url, domains: self.domains.clone(), public_url }
    }

    /// The database that was named, if one was.
    pub(crate) fn database(&self) -> anyhow::Result<Option<sqlx::postgres::PgConnectOptions>> {
        let url = self.database_url.as_deref();
        // The text may hold a password: what is wrong with it is told without it.
        url.map(str::parse).transpose().ok().context("DATABASE_URL is no PostgreSQL URL")
    }
}
