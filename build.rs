//! Turns `proto/` into Rust, without a `protoc`, and keeps the file descriptors for gRPC reflection.

use std::{env, error::Error, fs, path::PathBuf};

/// The files with services; what they import comes along.
const PROTOS: [&str; 9] = [
    "etcd/rpc.proto",
    "etcd/lock.proto",
    "etcd/election.proto",
    "lainlet/config.proto",
    "lainlet/containers.proto",
    "lainlet/depends.proto",
    "lainlet/nodes.proto",
    "lainlet/podgroups.proto",
    "lainlet/server.proto",
];
/// The package of Lainlet's.
const LAINLET: &str = "message";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(PROTOS)?;
    // Reflection shows names and types; the comments go into the Rust code alone.
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("protocols.bin");
    fs::write(descriptors, compiler.include_source_info(false).encode_file_descriptor_set())?;
    let mut etcd = compiler.include_source_info(true).file_descriptor_set();
    let mut lainlet = etcd.clone();
    etcd.file.retain(|file| file.package() != LAINLET);
    lainlet.file.retain(|file| file.package() == LAINLET);
    tonic_prost_build::configure()
        .bytes(".")
        // Who serves a few RPCs of a service implements those; the others answer Unimplemented.
        .generate_default_stubs(true)
        .compile_fds(etcd)?;
    // Replies are put together from shared parts, which a generated server could not send.
    tonic_prost_build::configure().bytes(".").btree_map(".").build_server(false).compile_fds(lainlet)?;
    Ok(())
}
