//! Settings of each role, as flags. Each flag has an environment variable; the table in
//! docs/operations.md lists both. `main` reads the settings once.

mod accounts;

use accounts::Accounts;
use anyhow::Context;
use clap::Args;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Flag for the folder of the platform's files.
#[derive(Args, Debug, Clone)]
pub(crate) struct Folder {
    /// Folder for all files of the platform on this machine.
    #[arg(long = "dir", env = "WRENN_DIR", default_value = "/var/lib/wrenn")]
    pub dir: PathBuf,
}

/// Flags for logging.
#[derive(Args, Debug, Clone)]
pub(crate) struct Log {
    /// Log level, or levels by module such as `info,host_agent=debug`.
    #[arg(long = "log", env = "WRENN_LOG", default_value = "info")]
    pub filter: String,
    /// Write logs as JSON lines.
    #[arg(long = "log-json", env = "WRENN_LOG_JSON")]
    pub json: bool,
    /// Send spans to this OpenTelemetry collector, by OTLP over HTTP with protobuf, for example
    /// http://127.0.0.1:4318. Default: no spans.
    #[arg(long = "otlp-endpoint", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Name of this process in its spans. Default: the name of its role.
    #[arg(long = "otlp-service", env = "OTEL_SERVICE_NAME")]
    pub otlp_service: Option<String>,
}

impl Log {
    /// Begins the log of a role, and the export of its spans if there is a collector.
    ///
    /// # Errors
    /// When spans cannot be exported to the collector's endpoint.
    pub(crate) fn begin(&self, role: &str) -> anyhow::Result<daemon::Logs> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let service = given(&self.otlp_service).unwrap_or_else(|| role.to_owned());
        let spans =
            given(&self.otlp_endpoint).map(|endpoint| daemon::SpanExport { endpoint, service });
        daemon::log_to_stderr(&self.filter, self.json, spans.as_ref())
    }
}

/// Flag for the settings of registries.
#[derive(Args, Debug, Clone)]
pub(crate) struct Registries {
    /// TOML file with settings of container registries: mirrors, logins, allowed images, limits.
    /// Default: Docker Hub and all other public registries, without logins.
    #[arg(long, env = "WRENN_REGISTRIES")]
    pub registries: Option<PathBuf>,
}

impl Registries {
    /// Reads the file.
    ///
    /// # Errors
    /// When the file cannot be read or used, with the line or the field at fault.
    pub(crate) fn read(&self) -> anyhow::Result<host_agent::Registries> {
        let given = self.registries.as_deref().filter(|path| !path.as_os_str().is_empty());
        given.map_or_else(|| Ok(host_agent::Registries::default()), host_agent::Registries::read)
    }
}

/// Flags of a host agent.
#[derive(Args, Debug, Clone)]
pub(crate) struct Agent {
    /// Address that the host agent listens on. Default: the address at the time of the host's
    /// registration, else 127.0.0.1:8001.
    #[arg(id = "agent_listen", long = "agent-listen", env = "WRENN_AGENT_LISTEN_ADDR")]
    pub listen: Option<SocketAddr>,
    /// Address range for the capsules' links to the host, at least a /24.
    #[arg(long, env = "WRENN_NETWORK", default_value = "10.220.0.0/16")]
    pub network: String,
    /// Maximum number of networks to make ahead of creates, so that a create need not wait for its
    /// network. 0 makes none ahead.
    #[arg(long, env = "WRENN_READY_NETWORKS", default_value_t = 4)]
    pub ready_networks: u32,
    /// Name servers for guests.
    #[arg(long, env = "WRENN_DNS", default_value = "1.1.1.1,8.8.8.8", value_delimiter = ',')]
    pub dns: Vec<IpAddr>,
    /// Driver for the machines: `auto`, `firecracker`, `kvm` or `tcg` (both QEMU).
    #[arg(long, env = "WRENN_DRIVER", default_value = "auto")]
    pub driver: host_agent::DriverChoice,
    /// Path of Firecracker. Default: the first on the PATH.
    #[arg(long, env = "WRENN_FIRECRACKER")]
    pub firecracker: Option<PathBuf>,
    /// Path of Firecracker's jailer, or `none` to run capsules without it. Default: the jailer
    /// beside Firecracker, or on the PATH.
    #[arg(long, env = "WRENN_JAILER")]
    pub jailer: Option<PathBuf>,
    /// Accept a Firecracker older than the versions known to be safe. For experiments only.
    #[arg(long, env = "WRENN_FIRECRACKER_ANY_VERSION", value_parser = flag(),
        default_value = "false", default_missing_value = "true", num_args = 0..=1)]
    pub firecracker_any_version: bool,
    /// Memory for all capsules together, in MiB. 0 means four fifths of the machine's memory.
    #[arg(long, env = "WRENN_MEMORY_MIB", default_value_t = 0)]
    pub memory_mib: u64,
    /// Share of the capsules' memory for ready capsules, in percent. A host makes ready capsules
    /// ahead of creates, and ends them when another capsule needs their memory. 0 means none.
    #[arg(long, env = "WRENN_READY_MEMORY_PERCENT", default_value_t = 10,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub ready_memory_percent: u8,
    /// Virtual CPUs for all capsules together. 0 means 64 for each core.
    #[arg(long, env = "WRENN_VCPUS", default_value_t = 0)]
    pub vcpus: u64,
    /// Disk for all capsules together, in MiB. 0 means eight times the machine's disk.
    #[arg(long, env = "WRENN_DISK_MIB", default_value_t = 0)]
    pub disk_mib: u64,
    /// Object store for paused capsules, snapshots and templates: a folder that all hosts share, or
    /// s3://bucket/prefix. Other hosts resume and start capsules from it. S3 settings come from
    /// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT.
    #[arg(long, env = "WRENN_STORE")]
    pub store: Option<String>,
    /// Secret from which each team's key for the store is derived: 64 hexadecimal digits, or the
    /// path of a file that contains them. All hosts need the same secret. Without a secret, the
    /// store is not encrypted.
    #[arg(long, env = "WRENN_STORE_KEY", hide_env_values = true)]
    pub store_key: Option<String>,
    #[command(flatten)]
    pub registries: Registries,
    /// Maximum number of concurrent requests and connections to one capsule. Further requests are
    /// refused.
    #[arg(long, env = "WRENN_CAPSULE_CONNECTIONS", default_value_t = 1024)]
    pub connections: u32,
    /// Days to keep lines of capsules' logs, also after the capsule's end; 0 keeps no logs.
    #[arg(id = "host_logs_days", long = "logs-days", env = "WRENN_LOGS_DAYS", default_value_t = 7)]
    pub logs_days: u32,
    /// Maximum size of one capsule's log on its host, in MiB, at least 4. The oldest lines go first.
    #[arg(long, env = "WRENN_LOGS_CAPSULE_MIB", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(4..))]
    pub logs_capsule_mib: u32,
}

impl Agent {
    /// Returns the address to listen on, given the address of an earlier registration. An explicit
    /// setting takes precedence over it.
    pub(crate) fn listens(&self, before: Option<SocketAddr>) -> SocketAddr {
        self.listen.or(before).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8001)))
    }

    /// Converts the flags to the host agent's configuration.
    pub(crate) fn config(&self, dir: &Path) -> anyhow::Result<host_agent::Config> {
        Ok(host_agent::Config {
            dir: dir.to_owned(),
            network: self.network.clone(),
            ready_networks: self.ready_networks,
            dns: self.dns.clone(),
            driver: self.driver.clone(),
            firecracker: self.firecracker(),
            memory_mib: self.memory_mib,
            ready_memory_percent: self.ready_memory_percent,
            vcpus: self.vcpus,
            disk_mib: self.disk_mib,
            store: self.store()?,
            registries: self.registries.read()?,
            connections: self.connections,
            log_limits: host_agent::LogLimits {
                days: self.logs_days,
                capsule_mib: self.logs_capsule_mib,
            },
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

/// Reads the store's secret from its 64 hexadecimal digits, or from a file of them.
fn store_key(given: &str) -> anyhow::Result<[u8; 32]> {
    let read = || std::fs::read_to_string(given);
    let digits = if given.len() == 64 { given.to_owned() } else { read().unwrap_or_default() };
    types::hex::decode(digits.trim()).context(
        "WRENN_STORE_KEY must be 64 hexadecimal digits, or the path of a file that contains them",
    )
}

/// Permission to talk to other machines in plain text.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Plaintext {
    /// Allow plain HTTP between control planes and hosts on different machines without
    /// certificates. Anybody on the network between the machines can then control every capsule.
    #[arg(long = "allow-plaintext", env = "WRENN_ALLOW_PLAINTEXT", value_parser = flag(),
        default_value = "false", default_missing_value = "true", num_args = 0..=1)]
    pub allowed: bool,
}

/// Returns the parser of a yes-or-no setting, which accepts words such as `1` and `true`.
fn flag() -> impl clap::builder::TypedValueParser {
    clap::builder::BoolishValueParser::new()
}

/// Flags for the authority that signs certificates of hosts and control planes.
#[derive(Args, Debug, Clone)]
pub(crate) struct Ca {
    /// Certificates of all trusted authorities (PEM, or a path), among them the certificate of
    /// --ca-key. While a new authority replaces an old one, both are listed.
    #[arg(long, env = "WRENN_CA_CERT", hide_env_values = true)]
    pub ca_cert: Option<String>,
    /// Private key of the authority (PEM, or a path), ECDSA P-256.
    #[arg(long, env = "WRENN_CA_KEY", hide_env_values = true)]
    pub ca_key: Option<String>,
}

impl Ca {
    /// Returns the certificates and the key as PEM, or `None` when neither was given.
    ///
    /// # Errors
    /// When only one of the two was given, or a file cannot be read.
    pub(crate) fn read(&self) -> anyhow::Result<Option<(String, String)>> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        match (given(&self.ca_cert), given(&self.ca_key)) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => {
                Ok(Some((pem("WRENN_CA_CERT", cert)?, pem("WRENN_CA_KEY", key)?)))
            }
            (None, Some(_)) => anyhow::bail!("WRENN_CA_KEY is set, but WRENN_CA_CERT is not"),
            (Some(_), None) => anyhow::bail!("WRENN_CA_CERT is set, but WRENN_CA_KEY is not"),
        }
    }
}

/// Returns the PEM text of a setting that holds either the text itself or a file's path.
fn pem(name: &str, given: String) -> anyhow::Result<String> {
    if given.contains("-----BEGIN") {
        return Ok(given);
    }
    std::fs::read_to_string(&given).with_context(|| format!("cannot read the file of {name}"))
}

/// Flags of a control plane.
#[derive(Args, Debug, Clone)]
pub(crate) struct ControlPlane {
    /// Address that the API listens on.
    #[arg(long = "listen", env = "WRENN_CP_LISTEN_ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// URL of the PostgreSQL database, such as `postgres://user:password@host/name`.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// Domains whose names `{port}-{capsule}.{domain}` lead to capsules. Default: any domain.
    #[arg(long, env = "WRENN_DOMAINS", value_delimiter = ',')]
    pub domains: Vec<String>,
    /// URL whose host is the domain of the capsules' names, such as https://sandbox.example.com.
    /// Default: https with the first domain and the HTTPS port. Without domains, the default is
    /// http://localhost with the API's port.
    #[arg(long, env = "WRENN_PUBLIC_URL")]
    pub public_url: Option<String>,
    #[command(flatten)]
    pub tls: Tls,
    #[command(flatten)]
    pub ca: Ca,
    /// Days to keep metrics of capsules and hosts: CPU, memory, disk and network. Samples of each 5
    /// s are kept for today and yesterday. 0 keeps none.
    #[arg(long, env = "WRENN_METRICS_DAYS", default_value_t = 30)]
    pub metrics_days: u32,
    #[command(flatten)]
    pub capacity: Capacity,
    #[command(flatten)]
    pub accounts: Accounts,
}

/// Flags for the capacity of each listener.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Capacity {
    /// Maximum number of concurrent connections to each listener. An eighth is reserved for this
    /// machine, for hosts, and for addresses that showed a credential within the last hour. A team
    /// may use half of the concurrent requests, and one key or user a quarter.
    #[arg(id = "api_connections", long = "api-connections", env = "WRENN_CONNECTIONS",
        default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(16..))]
    pub connections: u32,
    /// Maximum number of concurrent connections from one IPv4 address or one IPv6 /64. Default: a
    /// sixteenth of all connections. For clients behind a proxy on this machine, concurrent
    /// requests are counted instead.
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

/// Flags of the HTTPS listener.
#[derive(Args, Debug, Clone)]
pub(crate) struct Tls {
    /// Address on which the API and capsules are served over HTTPS. Default: none.
    #[arg(long, env = "WRENN_TLS_LISTEN_ADDR")]
    pub tls_listen: Option<SocketAddr>,
    /// Path of the HTTPS certificate with its chain (PEM). The certificate must cover the first
    /// domain and the names directly below it. `wrenn pki wildcard DOMAIN` issues one.
    #[arg(long, env = "WRENN_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Path of the HTTPS certificate's private key (PEM).
    #[arg(long, env = "WRENN_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
}

/// Addresses on which a control plane listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listening {
    pub plain: SocketAddr,
    pub https: Option<SocketAddr>,
}

impl ControlPlane {
    /// Builds the control plane's settings, once it listens. `dir` is the platform's folder, if
    /// there is one.
    pub(crate) fn to_settings(
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
            accounts: self.accounts.to_settings(&public_url)?,
            public_url,
            mail: self.accounts.mail(dir),
            audit_access: self.accounts.audit_access,
            audit_days: self.accounts.audit_days,
            metrics_days: self.metrics_days,
            limits: self.capacity.limits(),
        })
    }

    /// Returns the connection options of the database that was named, if any.
    ///
    /// # Errors
    /// When the setting is no PostgreSQL URL.
    pub(crate) fn database(&self) -> anyhow::Result<Option<sqlx::postgres::PgConnectOptions>> {
        let url = self.database_url.as_deref();
        // The URL may hold a password, so the error does not quote it.
        url.map(str::parse).transpose().ok().context("DATABASE_URL is not a PostgreSQL URL")
    }
}
