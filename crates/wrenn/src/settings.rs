//! What each role is told: flags, each with its variable of the environment. The README's
//! table lists them; `main` reads them once.

mod accounts;

use accounts::Accounts;
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
    /// Address of the host agent; by default where it listened when it registered, else
    /// 127.0.0.1:8001.
    #[arg(id = "agent_listen", long = "agent-listen", env = "WRENN_AGENT_LISTEN_ADDR")]
    pub listen: Option<SocketAddr>,
    /// Range for the capsules' links to the host, at least a /24.
    #[arg(long, env = "WRENN_NETWORK", default_value = "10.220.0.0/16")]
    pub network: String,
    /// Name servers of the guests.
    #[arg(long, env = "WRENN_DNS", default_value = "1.1.1.1,8.8.8.8", value_delimiter = ',')]
    pub dns: Vec<IpAddr>,
    /// `auto`, `firecracker`, `kvm` and `tcg` (QEMU), or `fake:ENVD` for tests without machines.
    #[arg(long, env = "WRENN_DRIVER", default_value = "auto")]
    pub driver: Driver,
    /// Path of Firecracker; by default the one on the PATH.
    #[arg(long, env = "WRENN_FIRECRACKER")]
    pub firecracker: Option<PathBuf>,
    /// Path of Firecracker's jailer, or `none` to run capsules without; by default the one beside
    /// Firecracker, or on the PATH.
    #[arg(long, env = "WRENN_JAILER")]
    pub jailer: Option<PathBuf>,
    /// Use a Firecracker, too, that is older than those known to be safe: for trying things.
    #[arg(long, env = "WRENN_FIRECRACKER_ANY_VERSION", value_parser = flag(),
        default_value = "false", default_missing_value = "true", num_args = 0..=1)]
    pub firecracker_any_version: bool,
    /// Memory that capsules may have together, in MiB; 0 is four fifths of the machine's.
    #[arg(long, env = "WRENN_MEMORY_MIB", default_value_t = 0)]
    pub memory_mib: u64,
    /// Virtual CPUs that capsules may have together; 0 is 64 for each core.
    #[arg(long, env = "WRENN_VCPUS", default_value_t = 0)]
    pub vcpus: u64,
    /// Disk that capsules may have together, in MiB; 0 is eight times the machine's.
    #[arg(long, env = "WRENN_DISK_MIB", default_value_t = 0)]
    pub disk_mib: u64,
    /// Where what is kept of capsules goes too, for other hosts to have: a folder that they share,
    /// or as s3://bucket/prefix, with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and
    /// AWS_ENDPOINT.
    #[arg(long, env = "WRENN_STORE")]
    pub store: Option<String>,
    /// 64 hexadecimal digits, or a file of them: what each team's key of the store is derived
    /// from. Every host has the same; without it, the store is not encrypted.
    #[arg(long, env = "WRENN_STORE_KEY", hide_env_values = true)]
    pub store_key: Option<String>,
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
            "firecracker" => DriverChoice::Firecracker,
            "kvm" => DriverChoice::Kvm,
            "tcg" => DriverChoice::Tcg,
            other => match other.strip_prefix("fake:") {
                Some(envd) => DriverChoice::Fake { envd: envd.into() },
                None => return Err("must be auto, firecracker, kvm, tcg or fake:ENVD".to_owned()),
            },
        }))
    }
}

impl Agent {
    /// Where it listens, given where it listened before.
    pub(crate) fn listens(&self, before: Option<SocketAddr>) -> SocketAddr {
        self.listen.or(before).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8001)))
    }

    /// The agent's own form of it.
    pub(crate) fn config(&self, dir: &Path) -> anyhow::Result<host_agent::Config> {
        Ok(host_agent::Config {
            dir: dir.to_owned(),
            network: self.network.clone(),
            dns: self.dns.clone(),
            driver: self.driver.0.clone(),
            firecracker: self.firecracker(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            disk_mib: self.disk_mib,
            store: self.store()?,
            connections: self.connections,
        })
    }

    fn firecracker(&self) -> host_agent::FirecrackerChoice {
        let given =
            |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        let jailer = given(&self.jailer);
        let unjailed = jailer.as_deref() == Some(Path::new("none"));
        host_agent::FirecrackerChoice {
            firecracker: given(&self.firecracker),
            jailer: jailer.filter(|_| !unjailed),
            unjailed,
            any_version: self.firecracker_any_version,
        }
    }

    fn store(&self) -> anyhow::Result<Option<host_agent::StoreConfig>> {
        let Some(url) = self.store.clone().filter(|url| !url.is_empty()) else { return Ok(None) };
        let key = self.store_key.as_deref().filter(|key| !key.is_empty());
        let key = key.map(store_key).transpose()?;
        Ok(Some(host_agent::StoreConfig { url, key }))
    }
}

/// A key as digits, or a file of them.
fn store_key(given: &str) -> anyhow::Result<[u8; 32]> {
    let read = || std::fs::read_to_string(given);
    let digits = if given.len() == 64 { given.to_owned() } else { read().unwrap_or_default() };
    let digits = digits.trim().as_bytes();
    let mut key = [0; 32];
    let whole = digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit);
    anyhow::ensure!(whole, "WRENN_STORE_KEY must be 64 hexadecimal digits, or a file of them");
    for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair)?, 16)?;
    }
    Ok(key)
}

/// Whether other machines may be talked to in plain text.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Plaintext {
    /// Let control planes and hosts on different machines talk by plain HTTP, where they have no
    /// certificates: whoever is on the network between them then has every capsule.
    #[arg(long = "allow-plaintext", env = "WRENN_ALLOW_PLAINTEXT", value_parser = flag(),
        default_value = "false", default_missing_value = "true", num_args = 0..=1)]
    pub allowed: bool,
}

/// `1` and `true` are yes.
fn flag() -> impl clap::builder::TypedValueParser {
    clap::builder::BoolishValueParser::new()
}

/// Who vouches for hosts and control planes.
#[derive(Args, Debug, Clone)]
pub(crate) struct Ca {
    /// Certificates of the authorities that are trusted (PEM, or a path): the one whose key is
    /// given, and beside it, while one replaces another, the other.
    #[arg(long, env = "WRENN_CA_CERT", hide_env_values = true)]
    pub ca_cert: Option<String>,
    /// Key of the authority (PEM, or a path), ECDSA P-256.
    #[arg(long, env = "WRENN_CA_KEY", hide_env_values = true)]
    pub ca_key: Option<String>,
}

impl Ca {
    /// The certificates and the key, as PEM; none when neither was given.
    pub(crate) fn read(&self) -> anyhow::Result<Option<(String, String)>> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        match (given(&self.ca_cert), given(&self.ca_key)) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => {
                Ok(Some((pem("WRENN_CA_CERT", cert)?, pem("WRENN_CA_KEY", key)?)))
            }
            (None, Some(_)) => anyhow::bail!("WRENN_CA_KEY is set, and WRENN_CA_CERT is not"),
            (Some(_), None) => anyhow::bail!("WRENN_CA_CERT is set, and WRENN_CA_KEY is not"),
        }
    }
}

/// PEM, given as it is or as a file's path.
fn pem(name: &str, given: String) -> anyhow::Result<String> {
    if given.contains("-----BEGIN") {
        return Ok(given);
    }
    std::fs::read_to_string(&given).with_context(|| format!("reading the file of {name}"))
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
    /// https, the first of the domains and the port of HTTPS, else http://localhost and the API's.
    #[arg(long, env = "WRENN_PUBLIC_URL")]
    pub public_url: Option<String>,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub ca: Ca,
    #[command(flatten)]
    pub capacity: Capacity,
    #[command(flatten)]
    pub accounts: Accounts,
}

/// Capacity of each listener.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Connections to each listener at once. An eighth is kept for this machine, for hosts and for
    /// addresses where a credential was shown within an hour. A team may have half of the requests
    /// under way, and one key or user a quarter.
    #[arg(id = "api_connections", long = "api-connections", env = "WRENN_CONNECTIONS",
        default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(16..))]
    pub connections: u32,
    /// Connections of one IPv4 address, or one IPv6 /64, at once; a sixteenth of all by default.
    /// For clients behind a proxy on this machine, their requests are counted instead.
    #[arg(long, env = "WRENN_CONNECTIONS_PER_ADDRESS",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_per_address: Option<u32>,
}

impl Capacity {
    fn limits(self) -> hop::Limits {
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let per_network = self.connections_per_address.unwrap_or(self.connections / 16);
        let (connections, per_network) = (count(self.connections), count(per_network));
        hop::Limits { connections, per_network, ..hop::Limits::default() }
    }
}

/// The listener of HTTPS.
#[derive(Args, Debug, Clone)]
pub(crate) struct Tls {
    /// Address of the API and of capsules by HTTPS; none by default.
    #[arg(long, env = "WRENN_TLS_LISTEN_ADDR")]
    pub tls_listen: Option<SocketAddr>,
    /// Path of its certificate, and those that vouch for it (PEM), which is for the first of the
    /// domains and the names right below it: `wrenn pki wildcard DOMAIN` makes one.
    #[arg(long, env = "WRENN_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Path of the certificate's key (PEM).
    #[arg(long, env = "WRENN_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
}

/// Where a control plane listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listening {
    pub plain: SocketAddr,
    pub https: Option<SocketAddr>,
}

impl ControlPlane {
    /// What the control plane is told, once it listens at an address; with the platform's folder,
    /// where it has one.
    pub(crate) fn told(
        &self,
        database: sqlx::postgres::PgConnectOptions,
        authority: Option<(String, String)>,
        plaintext: Plaintext,
        listens: Listening,
        dir: Option<&Path>,
    ) -> anyhow::Result<control_plane::Settings> {
        let domain = self.domains.iter().find(|domain| !domain.is_empty());
        let public_url = self.public_url.clone().unwrap_or_else(|| match domain {
            Some(domain) => match listens.https.map(|at| at.port()) {
                None | Some(443) => format!("https://{domain}"),
                Some(port) => format!("https://{domain}:{port}"),
            },
            None => format!("http://localhost:{}", listens.plain.port()),
        });
        Ok(control_plane::Settings {
            database,
            authority,
            plaintext: plaintext.allowed,
            domains: self.domains.clone(),
            accounts: self.accounts.told(&public_url)?,
            public_url,
            mail: self.accounts.mail(dir),
            audit_access: self.accounts.audit_access,
            audit_days: self.accounts.audit_days,
            limits: self.capacity.limits(),
        })
    }

    /// The database that was named, if one was.
    pub(crate) fn database(&self) -> anyhow::Result<Option<sqlx::postgres::PgConnectOptions>> {
        let url = self.database_url.as_deref();
        // The text may hold a password: what is wrong with it is told without it.
        url.map(str::parse).transpose().ok().context("DATABASE_URL is no PostgreSQL URL")
    }
}
