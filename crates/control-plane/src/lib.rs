//! The control plane: REST over a PostgreSQL database and host agents.
//!
//! Stateless but for the database: any number of replicas may serve. Only `capsules` moves a
//! capsule between states. It never touches a machine; it asks the agent of the host.

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
