//! Checks what the compiler does not: layer edges, file headers, leftovers, file sizes, and the pages: their links, the
//! flags and metrics that they name, and the parts that are made from the code (`make docs`).
//!
//! Not here: what the program does, see `tests/it`. Reads the sources as text, and asks the built program for its
//! flags. Each test collects all findings before it fails, so that one run shows everything to fix.

#![expect(clippy::panic, clippy::print_stderr, reason = "a test says what it found and fails by panicking")]

#[path = "tidy/markdown.rs"]
mod markdown;
#[path = "tidy/pages.rs"]
mod pages;
#[path = "tidy/reference.rs"]
mod reference;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What each layer may use. A module that is missing here is an error: add it, with as few edges as possible.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("telemetry", &[]),
    ("sync", &[]),
    ("latest", &["sync"]),
    ("pb", &[]),
    ("http2", &["sync", "types"]),
    ("critical", &[]),
    ("rate", &[]),
    ("fleet", &["rate"]),
    ("service", &[]),
    ("shutdown", &["telemetry", "critical"]),
    ("batch", &["critical", "telemetry"]),
    ("tls", &["telemetry"]),
    ("fetch", &["tls"]),
    ("health", &["fetch"]),
    ("top", &["fetch"]),
    ("bench", &["types", "telemetry", "tls", "pb"]),
    ("hub", &["critical", "rate", "sync", "types", "telemetry"]),
    ("ranges", &["types", "pb"]),
    ("rpc", &["types"]),
    ("source", &["critical", "types", "http2", "hub", "rpc", "telemetry", "tls", "pb", "ranges"]),
    ("store", &["types", "hub", "rpc", "telemetry", "pb", "ranges"]),
    ("view", &["critical", "types", "hub", "latest", "telemetry", "pb"]),
    (
        "front",
        &[
            "batch",
            "types",
            "hub",
            "view",
            "latest",
            "http2",
            "fleet",
            "rate",
            "rpc",
            "telemetry",
            "tls",
            "pb",
            "shutdown",
        ],
    ),
    (
        "relay",
        &[
            "batch",
            "critical",
            "types",
            "hub",
            "source",
            "store",
            "view",
            "front",
            "fleet",
            "http2",
            "rpc",
            "service",
            "telemetry",
            "tls",
            "pb",
            "shutdown",
        ],
    ),
    (
        "cli",
        &[
            "batch",
            "critical",
            "types",
            "hub",
            "source",
            "store",
            "view",
            "front",
            "telemetry",
            "tls",
            "pb",
            "service",
            "shutdown",
            "relay",
            "bench",
            "fetch",
            "health",
            "top",
        ],
    ),
    ("main", &["critical", "cli", "top", "relay", "telemetry", "shutdown"]),
    ("lib", &[]),
];

/// The modules of the hub from the bottom up. Each may use the modules that are listed with it. All of these come
/// before it, so there are no cycles. `hub` is what `hub.rs` itself defines.
const HUB: &[(&str, &[&str])] = &[
    ("slack", &[]),
    ("chunks", &[]),
    ("interval", &["slack"]),
    ("pages", &[]),
    ("shares", &[]),
    ("room", &[]),
    ("standing", &[]),
    ("turns", &[]),
    ("upstream", &[]),
    ("stats", &["upstream"]),
    ("confirm", &["stats", "upstream"]),
    ("pace", &["upstream"]),
    ("work", &["stats"]),
    ("index", &["chunks", "interval", "slack"]),
    ("payload", &["index"]),
    ("runs", &["payload"]),
    ("history", &["index", "payload", "runs"]),
    ("delivery", &["payload"]),
    ("snapshot", &["pages"]),
    ("pins", &["snapshot"]),
    ("listing", &["pages", "snapshot", "work"]),
    ("outbox", &["delivery", "index", "payload", "shares", "stats", "turns"]),
    (
        "feed",
        &[
            "hub", "chunks", "delivery", "history", "index", "outbox", "payload", "pins", "runs", "shares", "snapshot",
            "standing", "stats", "upstream",
        ],
    ),
    ("on_demand", &["hub", "feed", "snapshot"]),
    ("read", &["feed", "listing", "snapshot", "work"]),
    ("ends", &["delivery", "feed", "outbox", "stats"]),
    ("fill", &["delivery", "ends", "feed", "index", "outbox", "payload", "runs", "stats", "turns", "upstream"]),
    ("backfill", &["ends", "feed", "fill", "outbox", "stats", "upstream"]),
    ("catch_up", &["backfill", "feed", "history", "index", "outbox", "payload", "runs"]),
    ("pulse", &["hub", "feed"]),
    ("reset", &["backfill", "delivery", "feed", "outbox", "snapshot"]),
    (
        "watch_stream",
        &["backfill", "catch_up", "delivery", "ends", "feed", "fill", "index", "outbox", "shares", "standing", "stats"],
    ),
];

/// Names that must not appear in a layer, with the reason.
const BARRED: &[(&str, &[&str], &str)] = &[
    ("types", &["tonic", "hyper", "axum", "tokio", "etcd_client"], "types do nothing but hold values"),
    (
        "fleet",
        &["tonic", "hyper", "axum", "tokio", "Instant", "SystemTime", "rand"],
        "its policies take time and chance from their caller",
    ),
    ("hub", &["tonic", "hyper", "axum", "etcd_client"], "the hub knows no transport"),
    ("view", &["tonic", "hyper", "axum", "etcd_client"], "a view knows no transport"),
    ("store", &["etcd_client"], "the embedded store has no upstream"),
    (
        "http2",
        &["etcd_client", "tonic", "hyper", "axum", "metrics", "TcpStream", "TcpListener"],
        "the HTTP/2 server knows neither the relay, nor sockets, nor another server",
    ),
    ("front", &["etcd_client"], "a front never sees a source"),
];

/// Names that must not appear in a part of a layer, given by its path, with the reason.
const BARRED_BELOW: &[(&str, &[&str], &str)] =
    &[("src/front/session", &["tonic", "hyper", "axum", "http"], "a session knows no transport")];

/// Lines of a source file without its tests: above the first number it should be split, above the second it must be.
const LONG: usize = 600;
const TOO_LONG: usize = 800;

#[test]
fn layers_use_only_what_is_below_them() {
    let allowed: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let mut findings = Vec::new();
    for file in shipped_files() {
        let layer = layer_of(&file.path);
        let Some(may_use) = allowed.get(layer.as_str()) else {
            findings.push(format!("{}: {layer} is no known layer; add it to LAYERS", file.path.display()));
            continue;
        };
        let code = code_of(&file.text);
        for used in used_layers(&code, &file.path) {
            if used != layer && allowed.contains_key(used.as_str()) && !may_use.contains(&used.as_str()) {
                findings.push(format!("{}: {layer} uses {used}, and may use {may_use:?} only", file.path.display()));
            }
        }
        for (_, names, reason) in BARRED.iter().filter(|(barred_in, ..)| *barred_in == layer) {
            for name in names.iter().filter(|name| words(&code).any(|word| word == **name)) {
                findings.push(format!("{}: names {name}, but {reason}", file.path.display()));
            }
        }
        for (_, names, reason) in
            BARRED_BELOW.iter().filter(|(below, ..)| file.path.to_string_lossy().starts_with(below))
        {
            for name in names.iter().filter(|name| words(&code).any(|word| word == **name)) {
                findings.push(format!("{}: names {name}, but {reason}", file.path.display()));
            }
        }
        if !["cli", "main"].contains(&layer.as_str()) && code.contains("env::var") {
            findings.push(format!("{}: reads the environment, which is for cli to do", file.path.display()));
        }
    }
    assert_tidy(&findings);
}

#[test]
fn modules_of_the_hub_use_only_what_is_below_them() {
    let mut findings = Vec::new();
    for (place, (module, may_use)) in HUB.iter().enumerate() {
        let below = |used: &str| used == "hub" || HUB[..place].iter().any(|(below, _)| *below == used);
        let circles = may_use.iter().filter(|used| !below(used));
        findings.extend(circles.map(|used| format!("HUB: {module} may use {used}, which does not stand before it")));
    }
    let exports = exports(&uncommented(&read("src/hub.rs")));
    for file in shipped_files().filter(|file| file.path.starts_with("src/hub") && !is_part_of_a_test(&file.path)) {
        let module = module_of_hub(&file.path);
        let Some((_, may_use)) = HUB.iter().find(|(known, _)| *known == module) else {
            findings.push(format!("{}: {module} is no known module of the hub; add it to HUB", file.path.display()));
            continue;
        };
        for name in used_in_hub(&code_of(&file.text), &file.path) {
            let is_module = HUB.iter().any(|(known, _)| *known == name);
            let used = if is_module { &name } else { exports.get(&name).map_or("hub", String::as_str) };
            if used != module && !may_use.contains(&used) {
                let path = file.path.display();
                findings.push(format!("{path}: {module} uses {used} (for {name}), and may use {may_use:?} only"));
            }
        }
    }
    assert_tidy(&findings);
}

/// Code that only tests use, outside of test files.
fn is_part_of_a_test(path: &Path) -> bool {
    path.ends_with("hub/testing.rs")
}

/// Where tasks may be spawned without `critical::Tasks`, and why a panic there harms nobody else.
const SPAWNERS: &[(&str, &str)] = &[
    ("src/bench", "a separate program"),
    ("src/cli/bench", "a separate program"),
    ("src/critical.rs", "what all others use"),
    ("src/shutdown.rs", "wraps them"),
    ("src/main.rs", "signals, before there is a relay"),
    ("src/source/forward/overdue.rs", "wakes calls, and the next call starts another"),
    ("src/source/pool", "connections upstream: calls on them fail, and others take their place"),
    ("src/source/v2.rs", "the reading of one listing"),
    ("src/source/v2/", "connections to a v2 member, and the walk of one watch, which ends with it and is begun again"),
    ("src/front/grpc/etcd.rs", "the requests of one stream, which it ends"),
    ("src/front/listen/serve.rs", "connections of clients"),
    ("src/front/signal.rs", "waits for a token, and has nothing that could fail"),
    ("src/view/lainlet.rs", "the walk of one request"),
    ("src/tls/handshakes.rs", "handshakes of clients, each of which ends alone"),
    ("src/tls/follow.rs", "one read of files"),
    ("src/source/testing.rs", "a server for tests"),
    ("src/telemetry/delivered.rs", "a test"),
];

#[test]
fn tasks_that_hold_state_are_spawned_where_a_panic_is_noticed() {
    let spawns = ["tokio::spawn(", "thread::spawn(", "tokio::task::spawn", "spawner.spawn(", "TaskTracker::new("];
    let mut findings = Vec::new();
    for file in shipped_files() {
        let path = file.path.to_string_lossy().replace('\\', "/");
        let code = code_of(&file.text);
        if !SPAWNERS.iter().any(|(at, _)| path.contains(at)) && spawns.iter().any(|spawn| code.contains(spawn)) {
            findings.push(format!(
                "{path}: spawns by itself; use critical::Tasks, or say in SPAWNERS why a panic there harms nobody else"
            ));
        }
    }
    assert_tidy(&findings);
}

#[test]
fn unsafe_code_is_in_one_file() {
    let files = source_files("src").into_iter();
    let with: Vec<_> = files
        .filter(|file| words(&uncommented(&file.text)).any(|word| word == "unsafe"))
        .map(|file| file.path.display().to_string())
        .collect();
    assert_eq!(
        with,
        ["src/batch/ring.rs"],
        "it has a proof for each use; a second file needs a measurement that demands it"
    );
}

#[test]
fn every_file_begins_by_saying_what_it_is() {
    let files = ["src", "tests", "benches", "models"].into_iter().flat_map(source_files);
    let findings: Vec<_> = files
        .filter(|file| file.text.lines().next().and_then(|line| line.strip_prefix("//! ")).is_none_or(str::is_empty))
        .map(|file| format!("{}: the first line is not `//! …`", file.path.display()))
        .collect();
    assert_tidy(&findings);
}

#[test]
fn nothing_is_left_over() {
    let leftovers = ["todo!(", "unimplemented!(", "dbg!(", "TODO", "FIXME", "XXX"];
    // The only place that writes to the terminal has an exception from clippy's lint.
    let prints = ["println!(", "print!("];
    let mut findings = Vec::new();
    for file in source_files("src") {
        let code = uncommented(&file.text);
        for leftover in leftovers {
            // The words are meant for comments, the macros for code.
            let text = if leftover.ends_with('(') { &code } else { &file.text };
            if text.contains(leftover) {
                findings.push(format!("{}: has {leftover}", file.path.display()));
            }
        }
        if prints.iter().any(|print| code.contains(print)) && !code.contains("clippy::print_std") {
            findings.push(format!("{}: prints, without a reason given to clippy", file.path.display()));
        }
    }
    assert_tidy(&findings);
}

#[test]
fn no_file_is_too_long() {
    let mut findings = Vec::new();
    for file in shipped_files() {
        let lines = without_tests(&file.text).lines().count();
        if lines > TOO_LONG {
            findings.push(format!("{}: {lines} lines before its tests; split it", file.path.display()));
        } else if lines > LONG {
            eprintln!("{}: {lines} lines before its tests, and {TOO_LONG} is the end", file.path.display());
        }
    }
    assert_tidy(&findings);
}

#[test]
fn every_flag_of_serve_has_a_variable_of_its_name() {
    let help = help_of(&["serve"]);
    let flags = flags_in(&help);
    assert!(flags.contains("--etcd"), "`serve --help` does not show the flags: {help}");
    let mut findings = Vec::new();
    for flag in &flags {
        let variable = format!("ETCD_RELAY_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase());
        if !help.contains(&variable) {
            findings.push(format!("serve --help: `{flag}` cannot be set by {variable}"));
        }
    }
    assert_tidy(&findings);
}

#[test]
fn deploy_sets_only_what_serve_reads() {
    let help = help_of(&["serve"]);
    let mut known: BTreeSet<&str> = words(&help).filter(|word| word.starts_with("ETCD_RELAY_")).collect();
    // Read when the program is built.
    known.insert("ETCD_RELAY_COMMIT");
    let mut findings = Vec::new();
    for file in ["deploy/Dockerfile", "deploy/etcd-relay.service", "deploy/etcd-relay.env"] {
        let text = read(file);
        for variable in words(&text).filter(|word| word.starts_with("ETCD_RELAY_") && !known.contains(word)) {
            findings.push(format!("{file}: sets {variable}, which serve does not read"));
        }
    }
    assert_tidy(&findings);
}

#[test]
fn somebody_moves_every_metric() {
    let names = Path::new("src/telemetry/names.rs");
    let metrics = metrics_in(&read(names));
    assert!(!metrics.is_empty(), "no metric found in {}", names.display());
    let elsewhere: Vec<_> = shipped_files().filter(|file| !is_about_names(file)).collect();
    // A bound is set once, to its value, where the series are created. All other series start at zero there.
    let begins = code_of(&read("src/telemetry/names/begin.rs"));
    let set_once = |constant: &str| {
        let sets = |line: &&str| line.contains(".set(") && !line.contains(".set(0.0)");
        begins.lines().filter(sets).any(|line| words(line).any(|word| word == constant))
    };
    let mut findings = Vec::new();
    for constant in metrics.keys() {
        let moved = elsewhere.iter().any(|file| words(&code_of(&file.text)).any(|word| word == constant));
        if !moved && !set_once(constant) {
            findings.push(format!("{}: nobody uses {constant}", names.display()));
        }
    }
    assert_tidy(&findings);
}

#[test]
fn every_label_value_is_given_by_somebody() {
    let names = Path::new("src/telemetry/names.rs");
    let (there, elsewhere): (Vec<_>, Vec<_>) = shipped_files().partition(is_about_names);
    let text: String = there.into_iter().map(|file| file.text).collect();
    let elsewhere: Vec<String> = elsewhere.iter().map(|file| code_of(&file.text)).collect();
    let mut findings = Vec::new();
    let mut values = 0;
    for block in text.split("labels! {").skip(1).filter_map(|block| block.split("\n}\n").next()) {
        let mut lines = block.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("///"));
        let Some(label) = lines.next().and_then(|line| line.split_once(" as ")).map(|(label, _)| label) else {
            continue;
        };
        for (value, _) in lines.filter_map(|line| line.split_once(" = \"")) {
            values += 1;
            let given = format!("{label}::{value}");
            if !elsewhere.iter().any(|code| code.contains(&given)) {
                findings.push(format!("{}: nobody gives {given}", names.display()));
            }
        }
    }
    assert!(values > 20, "found {values} label values in {}", names.display());
    assert_tidy(&findings);
}

/// Names and meanings of metrics and labels, and the series that start at zero. The code that counts is elsewhere.
fn is_about_names(file: &SourceFile) -> bool {
    file.path.starts_with("src/telemetry/names.rs") || file.path.starts_with("src/telemetry/names")
}

struct SourceFile {
    /// From the root of the repository.
    path: PathBuf,
    text: String,
}

impl SourceFile {
    /// A test module that has outgrown the file it tests: `foo/tests.rs`, or below `foo/tests/`.
    fn is_tests(&self) -> bool {
        self.path.components().any(|part| ["tests", "tests.rs"].iter().any(|name| part.as_os_str() == *name))
    }
}

/// The files that ship.
fn shipped_files() -> impl Iterator<Item = SourceFile> {
    source_files("src").into_iter().filter(|file| !file.is_tests())
}

/// All `.rs` files below a folder, in order. An absent folder has none.
fn source_files(folder: &str) -> Vec<SourceFile> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a folder of the repository can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let path = path.strip_prefix(root()).expect("it is below the root").to_path_buf();
                files.push(SourceFile { text: read(&path), path });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `src/hub.rs` and `src/hub/feed.rs` belong to the layer `hub`.
fn layer_of(path: &Path) -> String {
    let below = path.components().nth(1).expect("a source file is below src");
    Path::new(below.as_os_str()).file_stem().expect("it has a name").to_string_lossy().into_owned()
}

/// The code that ships: without tests, which may use all layers, and without comments, which may name all of them.
fn code_of(text: &str) -> String {
    uncommented(without_tests(text))
}

/// The text before its inline test module, which is always last in a file.
fn without_tests(text: &str) -> &str {
    const MARK: &str = "\n#[cfg(test)]\n";
    let is_inline_module = |at: &usize| {
        let item = text[at + MARK.len()..].lines().find(|line| !line.starts_with("#[")).unwrap_or("");
        item.starts_with("mod ") && item.ends_with('{')
    };
    let end = text.match_indices(MARK).map(|(at, _)| at).find(is_inline_module);
    &text[..end.unwrap_or(text.len())]
}

fn uncommented(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        // A `//` inside a string usually belongs to a URL.
        let end = line.match_indices("//").map(|(at, _)| at).find(|at| !line[..*at].ends_with(':'));
        code.push_str(&line[..end.unwrap_or(line.len())]);
        code.push('\n');
    }
    code
}

/// The first segments of all paths from the crate's root: `crate::hub::…`, `crate::{hub, types::…}`, `etcd_relay::…` in
/// main, and `super::…` where that is the root.
fn used_layers(code: &str, path: &Path) -> BTreeSet<String> {
    // `hub.rs` is one level below the root, `hub/feed.rs` two.
    let depth = path.components().count() - 1;
    // In other files the library's name is part of log filters, not of paths.
    let from_outside = if layer_of(path) == "main" { "etcd_relay::" } else { "crate::" };
    let roots = ["crate::".to_owned(), from_outside.to_owned(), "super::".repeat(depth)];
    roots.iter().flat_map(|root| paths_after(code, root)).collect()
}

/// `src/hub/feed.rs` and `src/hub/feed/inner.rs` belong to the module `feed`.
fn module_of_hub(path: &Path) -> String {
    layer_of(&path.components().skip(1).collect::<PathBuf>())
}

/// The first segments of all paths from the hub's root, in a file below it: `super::…` where that is the root,
/// `crate::hub::…` and `crate::{…, hub::…}`.
fn used_in_hub(code: &str, path: &Path) -> BTreeSet<String> {
    let root = "super::".repeat(path.components().count() - 2);
    let mut used: BTreeSet<String> = paths_after(code, "crate::hub::").chain(paths_after(code, &root)).collect();
    for (at, group) in code.match_indices("crate::{") {
        for member in members(&code[at + group.len()..]) {
            if let Some(rest) = member.strip_prefix("hub::") {
                used.extend(heads(rest));
            }
        }
    }
    used
}

/// The first segments of all paths that begin with `root`.
fn paths_after<'a>(code: &'a str, root: &'a str) -> impl Iterator<Item = String> + 'a {
    let begins = |at: &usize| !code[..*at].chars().next_back().is_some_and(|before| is_word(before) || before == ':');
    let places = code.match_indices(root).map(|(at, _)| at).filter(move |at| begins(at));
    places.flat_map(move |at| heads(&code[at + root.len()..]))
}

/// The first segment of a path, or those of all members of a `{…}`.
fn heads(rest: &str) -> Vec<String> {
    match rest.strip_prefix('{') {
        Some(group) => group_heads(group),
        None => words(rest).next().map(str::to_owned).into_iter().collect(),
    }
}

/// Name → module, of all that a module re-exports: `pub use self::{feed::{Feed, FeedKind}, outbox::OutboxLimits};`.
fn exports(code: &str) -> BTreeMap<String, String> {
    let mut exports = BTreeMap::new();
    for (at, start) in code.match_indices("pub use self::{") {
        for member in members(&code[at + start.len()..]) {
            if let Some((module, names)) = member.split_once("::") {
                exports.extend(heads(names).into_iter().map(|name| (name, module.to_owned())));
            }
        }
    }
    exports
}

/// The members of a `{…}` whose opening brace is gone, trimmed.
fn members(group: &str) -> Vec<&str> {
    let mut members = Vec::new();
    let (mut depth, mut from) = (0, 0);
    for (at, char) in group.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(&group[from..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&group[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    members.into_iter().map(str::trim).filter(|member| !member.is_empty()).collect()
}

/// The first word of each member of a `{…}` whose opening brace is gone.
fn group_heads(group: &str) -> Vec<String> {
    members(group).into_iter().filter_map(|member| words(member).next()).map(str::to_owned).collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char| !is_word(char)).filter(|word| !word.is_empty())
}

fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// The texts between backquotes.
fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The long flags of a clap help text, except for help and version, which every command has.
fn flags_in(help: &str) -> BTreeSet<String> {
    let mut flags = BTreeSet::new();
    for line in help.lines().map(str::trim_start) {
        let line = match line.as_bytes() {
            [b'-', short, b',', b' ', ..] if short.is_ascii_alphanumeric() => &line[4..],
            _ => line,
        };
        if line.starts_with("--") {
            let end = line.find(|char| !is_word(char) && char != '-').unwrap_or(line.len());
            flags.insert(line[..end].to_owned());
        }
    }
    flags.remove("--help");
    flags.remove("--version");
    flags
}

fn help_of(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_etcd-relay"))
        .args(command)
        .arg("--help")
        // No line is broken in the middle of a name.
        .env("COLUMNS", "1000")
        .output()
        .expect("the program was built");
    assert!(output.status.success(), "{command:?} --help: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("help is text")
}

/// Constant → name, of each `const X: &str = "etcd_relay_…";`.
fn metrics_in(names: &str) -> BTreeMap<String, String> {
    let mut metrics = BTreeMap::new();
    for line in uncommented(names).lines() {
        if let Some((declared, value)) = line.split_once(": &str = \"etcd_relay_")
            && let Some(constant) = words(declared).last()
            && let Some((rest, _)) = value.split_once('"')
        {
            metrics.insert(constant.to_owned(), format!("etcd_relay_{rest}"));
        }
    }
    metrics
}

#[track_caller]
fn assert_tidy(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// The checks above pass when they find nothing. These tests prove that they can find something.
mod the_checks_find {
    use super::*;

    #[test]
    fn every_form_of_an_edge() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("src/hub/feed.rs", "use crate::source::Etcd;", &["source"]),
            ("src/hub/feed.rs", "pub(crate) fn f(x: &crate::front::X) {}", &["front"]),
            (
                "src/hub/feed.rs",
                "use crate::{\n    front::{a, source},\n    types::{b, c},\n    pb,\n};",
                &["front", "pb", "types"],
            ),
            ("src/hub/feed.rs", "use super::super::store;", &["store"]),
            ("src/hub/feed.rs", "use super::history;", &[]),
            ("src/hub.rs", "use super::store::Store;", &["store"]),
            ("src/main.rs", "use etcd_relay::{cli, relay::Relay};", &["cli", "relay"]),
            ("src/hub.rs", "use other_crate::source;", &[]),
            ("src/hub.rs", "\"info,etcd_relay::front=debug\"", &[]),
            ("src/hub.rs", "// use crate::source;\n", &[]),
            ("src/hub.rs", "\n#[cfg(test)]\n#[expect(x)]\nmod tests {\n    use crate::store;\n}", &[]),
            ("src/hub.rs", "\n#[cfg(test)]\nmod tests;\nuse crate::store;\n", &["store"]),
        ];
        for (path, text, expected) in cases {
            let used = used_layers(&code_of(text), Path::new(path));
            assert_eq!(used.iter().map(String::as_str).collect::<Vec<_>>(), *expected, "{path}: {text}");
        }
    }

    #[test]
    fn every_form_of_an_edge_within_the_hub() {
        let cases: &[(&str, &str, &[&str])] = &[
            (
                "src/hub/outbox.rs",
                "use super::{\n    Feed, feed,\n    delivery::{A, B},\n};",
                &["Feed", "delivery", "feed"],
            ),
            ("src/hub/outbox.rs", "fn f(x: &super::feed::Inner) {}", &["feed"]),
            ("src/hub/outbox.rs", "use self::state::State;", &[]),
            ("src/hub/outbox/state.rs", "use super::Watches;\nuse super::super::feed::Inner;", &["feed"]),
            (
                "src/hub/outbox/state.rs",
                "use crate::{\n    hub::{\n        Feed,\n        stats,\n    },\n    types::{B},\n};",
                &["Feed", "stats"],
            ),
            ("src/hub/outbox/state.rs", "use crate::{hub::feed::Inner, types::B};", &["feed"]),
            ("src/hub/outbox/state.rs", "let x = crate::hub::Feed::new();", &["Feed"]),
        ];
        for (path, text, expected) in cases {
            let used = used_in_hub(&code_of(text), Path::new(path));
            assert_eq!(used.iter().map(String::as_str).collect::<Vec<_>>(), *expected, "{path}: {text}");
        }
        let exports = exports("pub use self::{\n    feed::{Feed, FeedKind},\n    outbox::OutboxLimits,\n};");
        let found: Vec<_> = exports.iter().map(|(name, module)| (name.as_str(), module.as_str())).collect();
        assert_eq!(found, [("Feed", "feed"), ("FeedKind", "feed"), ("OutboxLimits", "outbox")]);
        assert_eq!(module_of_hub(Path::new("src/hub/feed/inner.rs")), "feed");
        assert_eq!(module_of_hub(Path::new("src/hub/feed.rs")), "feed");
    }

    #[test]
    fn a_layer_by_its_file() {
        for (path, layer) in [("src/hub.rs", "hub"), ("src/hub/feed.rs", "hub"), ("src/main.rs", "main")] {
            assert_eq!(layer_of(Path::new(path)), layer);
        }
    }

    #[test]
    fn flags_in_help() {
        let help = "Options:\n      --listen-grpc <ADDR>\n          Where. See --not-a-row [env: X=]\n  -p, --prefix <P>\n  -h, --help\n";
        assert_eq!(flags_in(help).into_iter().collect::<Vec<_>>(), ["--listen-grpc", "--prefix"]);
    }

    #[test]
    fn metrics_by_their_constants() {
        let names =
            "/// Reads.\npub const READS: &str = \"etcd_relay_reads_total\";\npub const LABEL: &str = \"port\";\n";
        let found: Vec<_> = metrics_in(names).into_iter().collect();
        assert_eq!(found, [("READS".to_owned(), "etcd_relay_reads_total".to_owned())]);
    }
}
