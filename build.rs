//! Turns `proto/` into Rust, without a `protoc`, keeps the file descriptors for gRPC reflection, and says where `main.rs` finds the commit.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

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
    name_reflog()?;
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

/// Names the file to which git adds a line at each commit, in `ETCD_RELAY_REFLOG`; an empty one where this is no checkout.
///
/// `main.rs` includes it, so a commit costs the compilation of that file. This script runs again only when another branch is checked out: whenever it does,
/// the whole package is compiled.
fn name_reflog() -> Result<(), Box<dyn Error>> {
    let found = git_dir(Path::new(&env::var("CARGO_MANIFEST_DIR")?)).and_then(|git| {
        let (head, log) = (git.join("HEAD"), git.join("logs/HEAD"));
        (head.is_file() && log.is_file()).then_some((head, log))
    });
    let log = match found {
        Some((head, log)) => {
            println!("cargo:rerun-if-changed={}", head.display());
            log
        }
        None => {
            let none = PathBuf::from(env::var("OUT_DIR")?).join("no-reflog");
            fs::write(&none, "")?;
            none
        }
    };
    println!("cargo:rustc-env=ETCD_RELAY_REFLOG={}", log.display());
    Ok(())
}

/// Of a checkout, or of one of its worktrees, which have a file that names it.
fn git_dir(root: &Path) -> Option<PathBuf> {
    let git = root.join(".git");
    if git.is_dir() {
        return Some(git);
    }
    let text = fs::read_to_string(git).ok()?;
    Some(root.join(text.strip_prefix("gitdir: ")?.trim_end()))
}
