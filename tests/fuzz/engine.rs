//! Runs a target on its corpus, and on inputs made from the corpus.
//!
//! A failing input is reduced and written to a file, which belongs into the corpus once the fault is fixed. Always
//! holds: unless a time is set, a run depends only on its seed and the corpus.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::ALLOCATED;

/// Longest generated input in bytes.
const LONGEST: usize = 4_000;
/// Attempts to reduce a failing input.
const SMALLER: usize = 300;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `target` on its corpus, and on `cases` inputs made from it.
pub(crate) fn run(name: &str, cases: u64, target: impl Fn(&[u8])) {
    let _alone = ONE_AT_A_TIME.lock();
    if let Some(file) = env::var_os("ETCD_RELAY_FUZZ_INPUT") {
        return target(&fs::read(file).expect("ETCD_RELAY_FUZZ_INPUT is a file"));
    }
    let corpus = corpus(name);
    for (path, input) in &corpus {
        eprintln!("{}", path.display());
        target(input);
    }
    let seed = number("ETCD_RELAY_TEST_SEED").unwrap_or_else(rand::random);
    let time = number("ETCD_RELAY_FUZZ_SECONDS").map(Duration::from_secs);
    eprintln!("{name}: ETCD_RELAY_TEST_SEED={seed}");
    let (mut rng, started) = (StdRng::seed_from_u64(seed), Instant::now());
    let mut done = 0;
    while time.map_or(done < cases, |time| started.elapsed() < time) {
        let input = make(&mut rng, &corpus);
        if fails(&target, &input) {
            let input = smaller(&target, input);
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{seed}-{done}"));
            fs::write(&path, &input).expect("the build's directory can be written to");
            eprintln!("run again with ETCD_RELAY_FUZZ_INPUT={}: {input:02x?}", path.display());
            target(&input);
            unreachable!("{name} fails only sometimes on this input");
        }
        done += 1;
    }
    eprintln!("{name}: {} of the corpus and {done} inputs in {:?}", corpus.len(), started.elapsed());
}

/// Runs `work`. Fails if it has more than `most` bytes allocated at the same time.
pub(crate) fn within<T>(most: usize, work: impl FnOnce() -> T) -> T {
    let before = peak_alloc::PeakAlloc::current_usage(&ALLOCATED);
    ALLOCATED.reset_peak_usage();
    let result = work();
    let took = ALLOCATED.peak_usage().saturating_sub(before);
    assert!(took <= most, "took {took} bytes, but may take only {most}");
    result
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths.into_iter().map(|path| (path.clone(), fs::read(path).expect("a file"))).collect()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

fn fails(target: &impl Fn(&[u8]), input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| target(input))).is_err()
}

/// Random bytes, or a changed part of the corpus.
fn make(rng: &mut StdRng, corpus: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    let mut input = if rng.random_ratio(1, 2) {
        let mut bytes = vec![0; rng.random_range(1..300)];
        rng.fill(&mut bytes[..]);
        bytes
    } else {
        corpus.choose(rng).map(|(_, input)| input.clone()).unwrap_or_default()
    };
    for _ in 0..rng.random_range(0..8) {
        let at = rng.random_range(0..=input.len());
        let to = rng.random_range(at..=input.len().min(at + 40));
        match rng.random_range(0..7) {
            0 => drop(input.drain(at..to)),
            1 => input[at..to].iter_mut().for_each(|byte| *byte = rng.random()),
            2 => input.insert(at, *[0, 1, 0x7f, 0x80, 0xff].choose(rng).expect("some")),
            3 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
            4 if at < input.len() => input[at] = input[at].wrapping_add(rng.random_range(0..3)).wrapping_sub(1),
            5 => {
                let again = input[at..to].to_vec();
                input.splice(at..at, again.repeat(rng.random_range(1..5)));
            }
            _ => {
                let (_, other) = corpus.choose(rng).expect("some");
                let from = rng.random_range(0..=other.len());
                input.splice(at.., other[from..].iter().copied());
            }
        }
    }
    input.truncate(LONGEST);
    input
}

/// Removes parts of the input as long as it still fails.
fn smaller(target: &impl Fn(&[u8]), mut input: Vec<u8>) -> Vec<u8> {
    let (mut runs, mut chunk) = (0, input.len() / 2);
    while chunk > 0 && runs < SMALLER {
        let mut at = 0;
        while at + chunk <= input.len() && runs < SMALLER {
            let without = [&input[..at], &input[at + chunk..]].concat();
            runs += 1;
            if fails(target, &without) {
                input = without;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    input
}
