//! The pure half of template builds, shared by the command line, the control plane and the agent.
//! This crate turns a Dockerfile, a list of steps or E2B's request into a recipe. It resolves a
//! recipe to prepared steps with cache keys, and decides names, tags, start and ready.
//!
//! All modules are pure except `context`, which reads the files that a COPY names. Nothing here
//! runs a step, speaks HTTP or knows a database. Every input is hostile and bounded.

pub mod cache;
pub mod context;
pub mod dockerfile;
pub mod e2b;
pub mod expand;
mod fault;
mod glob;
pub mod ignore;
pub mod names;
pub mod placement;
mod prepare;
pub mod resolve;
pub mod spec;
pub mod start;
pub mod steps;
pub mod tags;

pub use cache::Key;
pub use dockerfile::Dockerfile;
pub use fault::Fault;
pub use resolve::{Base, Config, Plan, resolve};
pub use spec::{BuildSpec, Provenance, Pull};
pub use steps::{Action, Command, Dialect, Recipe, Source, Stage, Step};
