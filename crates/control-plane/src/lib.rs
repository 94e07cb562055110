//! The control plane: a REST API over a PostgreSQL database and host agents.
//!
//! All state is in the database, so any number of replicas may serve. Only `capsules` moves a
//! capsule between states. The control plane never touches a machine; it calls the host's agent.

mod agent;
mod app;
mod audit;
mod auth;
mod bootstrap;
mod build_files;
mod builds;
mod cache;
mod capsules;
mod changes;
mod channels;
mod code;
mod db;
mod domains;
mod e2b;
mod error;
mod events;
mod fields;
mod gauges;
mod hosts;
mod http;
mod keys;
mod limits;
mod load;
mod logs;
mod policy;
mod processes;
mod proxy;
mod quota;
mod reconcile;
mod registries;
mod retention;
mod rounds;
pub mod scheduler;
mod seal;
mod secret;
mod serve;
mod snapshots;
mod stats;
mod streams;
mod tags;
mod teams;
mod templates;
mod usage;
mod users;
mod versions;

pub use app::App;
pub use error::Error;
pub use http::{openapi, routes_of_others};
pub use secret::new_api_key;
pub use serve::{ControlPlane, Secure, Settings};
pub use users::accounts::{Accounts, SignUp};
pub use users::mail::Settings as MailSettings;
pub use users::provider::Provider;
