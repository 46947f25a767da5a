//! Turns `proto/` into Rust, without a `protoc`, and keeps the file descriptors for gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

/// The files with services; what they import comes along.
const PROTOS: [&str; 3] = ["etcd/rpc.proto", "etcd/lock.proto", "etcd/election.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(PROTOS)?;
    // Reflection shows names and types; the comments go into the Rust code alone.
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("etcd.bin");
    fs::write(descriptors, compiler.include_source_info(false).encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .bytes(".")
        // Who serves a few RPCs of a service implements those; the others answer Unimplemented.
        .generate_default_stubs(true)
        .compile_fds(compiler.include_source_info(true).file_descriptor_set())?;
    Ok(())
}
