//! Compiles `proto/` into message types, clients and service traits.
//!
//! This script prints its own directives. The directives of `connectrpc-build` would name a file
//! that this script writes, and so rebuild the crate each time.

use std::error::Error;
use std::path::PathBuf;

const PROTOS: [&str; 3] = ["host.proto", "process.proto", "filesystem.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let protos = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", protos.display());
    println!("cargo:rerun-if-changed=build.rs");
    let set = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    let compiled = protox::compile(PROTOS, [&protos])?;
    std::fs::write(&set, protox::prost::Message::encode_to_vec(&compiled))?;
    connectrpc_build::Config::new()
        .files(&PROTOS)
        .descriptor_set(&set)
        .include_file("rpc.rs")
        .emit_rerun_directives(false)
        .compile()?;
    Ok(())
}
