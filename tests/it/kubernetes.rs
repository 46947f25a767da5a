//! Kubernetes' own tests of its storage layer, with a relay between it and etcd.
//!
//! These are the packages `storage/etcd3` and `storage/cacher` of k8s.io/apiserver, through which an API server reads
//! and writes all objects. `scripts/kubernetes` builds them, and `tests/kubernetes/testserver.go` starts an etcd and a
//! relay for each test. `make kubernetes` builds and runs all of them; `make test` runs a part of them if they are
//! already built. None may fail.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The tests that `make test` runs: watches, compaction, and lists that are streamed, paged, of the past and from the
/// watch cache.
const PART: [(&str, &str); 2] = [
    (
        "etcd3",
        "^(TestWatch|TestCompactConflict|TestConsistentList|TestListInconsistentContinuation|TestGetListStreamMultiChunk)$",
    ),
    ("cacher", "^(TestLists|TestConsistencyCheckerDigestMatches|TestBookmarksOnResourceVersionUpdates)$"),
];
/// Some tests need a fast machine, for example for something that must happen within 100 ms. A real fault shows every
/// time.
const ATTEMPTS: usize = 3;
/// All tests.
const ALL: [(&str, &str); 2] = [("etcd3", "^Test"), ("cacher", "^Test")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_storage_layer_of_an_api_server_passes_its_tests_on_a_relay() {
    let everything = std::env::var("ETCD_RELAY_TEST_SCALE").is_ok_and(|scale| scale == "full");
    let Some(folder) = built(everything) else { return };
    let packages = if everything { ALL } else { PART };
    let runs = packages.map(async |(package, pattern)| {
        let tests = run(&folder, package, pattern).await;
        println!("{package}: {} passed, {} failed, {} skipped", tests.passed, tests.failed.len(), tests.skipped);
        assert!(tests.passed > 10, "{package}: {} tests\n{}", tests.passed, tests.output);
        let mut last = tests;
        for _ in 1..ATTEMPTS {
            if last.failed.is_empty() {
                break;
            }
            println!("{package}: once more, alone: {:?}", last.failed);
            last = run(&folder, package, &format!("^({})$", last.failed.join("|"))).await;
        }
        assert!(last.failed.is_empty(), "{package}: {:?}\n{}", last.failed, last.output);
    });
    futures_util::future::join_all(runs).await;
}

/// The folder with the tests; `None`, with the reason printed, if they are not built or cannot be built.
fn built(build: bool) -> Option<PathBuf> {
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kubernetes"));
    if !build {
        script.arg("--if-built");
    }
    let found = script.output().expect("the script runs");
    if !found.status.success() {
        println!("SKIPPED: {}", String::from_utf8_lossy(&found.stderr));
        return None;
    }
    Some(PathBuf::from(String::from_utf8(found.stdout).expect("a path").trim()))
}

/// The results of tests.
struct Tests {
    passed: usize,
    skipped: usize,
    /// Their names, without subtests.
    failed: Vec<String>,
    output: String,
}

async fn run(folder: &Path, package: &str, pattern: &str) -> Tests {
    let mut command = Command::new(folder.join(format!("{package}.test")));
    command.current_dir(folder).env("ETCD_RELAY", env!("CARGO_BIN_EXE_etcd-relay")).args([
        "-test.v",
        "-test.timeout=20m",
        "-test.run",
        pattern,
    ]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("the tests run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let of = |outcome: &str| -> Vec<String> {
        let start = format!("--- {outcome}: ");
        let names = text.lines().filter_map(|line| line.trim_start().strip_prefix(&start)?.split(' ').next());
        names.map(ToOwned::to_owned).collect()
    };
    let mut failed = of("FAIL");
    failed.retain(|name| !name.contains('/'));
    let tests = Tests { passed: of("PASS").len(), skipped: of("SKIP").len(), failed, output: text.clone() };
    assert!(output.status.success() || !tests.failed.is_empty(), "{package} ended before its tests did:\n{text}");
    tests
}
