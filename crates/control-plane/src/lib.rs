//! The control plane: a REST API over a PostgreSQL database and host agents.
//!
//! All state is in the database, so any number of replicas may serve. Only `capsules` moves a
//! capsule between states. The control plane never touches a machine; it calls the host's agent.

mod agent;
mod app;
mod audit;
mod auth;
mod cache;
mod capsules;
mod channels;
mod db;
mod error;
mod hosts;
mod http;
mod keys;
mod limits;
mod load;
mod processes;
mod proxy;
mod reconcile;
mod retention;
pub mod scheduler;
mod snapshots;
mod streams;
mod teams;
mod users;

pub use app::{Accounts, App, ControlPlane, Secure, Settings};
pub use auth::new_api_key;
pub use error::Error;
pub use http::{openapi, routes_of_others};
pub use users::SignUp;
pub use users::mail::Settings as MailSettings;
pub use users::oauth::Provider;
