//! The control plane: REST over a PostgreSQL database and host agents.
//!
//! Stateless but for the database: any number of replicas may serve. Only `capsules` moves a
//! capsule between states. It never touches a machine; it asks the agent of the host.

mod agent;
mod app;
mod auth;
mod capsules;
mod db;
mod error;
mod hosts;
mod http;
mod processes;
mod proxy;
mod reconcile;
pub mod scheduler;
mod snapshots;

pub use app::{App, ControlPlane, Settings};
pub use auth::new_api_key;
pub use error::Error;
pub use http::openapi;
