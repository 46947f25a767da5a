//! Checks all pages: each link has a target, each page can be reached from the README and links back, and the flags,
//! variables and metrics on a page exist.
//!
//! Not here: the generated parts, see `reference`. Always holds: findings are collected before a test fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{
    assert_tidy,
    markdown::{Link, Page},
    metrics_in, read, reference, root, words,
};

/// Flags of other programs that pages name without the program: of the repository's own tests and benchmarks, etcd's,
/// etcdctl's, Helm's and Kubernetes'.
const FOREIGN_FLAGS: &[&str] = &[
    "--apps",
    "--relay",
    "--seconds",
    "--set",
    "--truth-only",
    "--watchers",
    "--enable-v2",
    "--etcd-prefix",
    "--etcd-servers",
    "--host-whitelist",
    "--listen-client-http-urls",
    "--listen-metrics-urls",
    "--max-request-bytes",
    "--no-ttl",
    "--watch-progress-notify-interval",
];

#[test]
fn each_link_leads_to_something() {
    let pages = pages();
    let anchors: BTreeMap<&Path, Vec<String>> =
        pages.iter().map(|page| (page.path.as_path(), page.anchors())).collect();
    let mut findings = Vec::new();
    for page in &pages {
        for Link { line, target } in page.links() {
            let Some((path, place)) = page.resolve(&target) else { continue };
            let here = format!("{}:{line}", page.path.display());
            if !root().join(&path).exists() {
                findings.push(format!("{here}: there is no {}", path.display()));
            } else if let Some(place) = place
                && let Some(anchors) = anchors.get(path.as_path())
                && !anchors.contains(&place)
            {
                findings.push(format!("{here}: {} has no heading `#{place}`", path.display()));
            }
        }
    }
    assert_tidy(&findings);
}

#[test]
fn each_page_is_found_from_the_readme_and_leads_back() {
    let pages = pages();
    let by_path: BTreeMap<&Path, &Page> = pages.iter().map(|page| (page.path.as_path(), page)).collect();
    let linked = |page: &Page| -> BTreeSet<PathBuf> {
        page.links().iter().filter_map(|link| page.resolve(&link.target)).map(|(path, _)| path).collect()
    };
    let mut findings = Vec::new();

    let readme = Path::new("README.md");
    let mut found: BTreeSet<PathBuf> = BTreeSet::from([readme.to_owned()]);
    let mut open = vec![readme.to_owned()];
    while let Some(path) = open.pop() {
        let Some(page) = by_path.get(path.as_path()) else { continue };
        for target in linked(page) {
            if found.insert(target.clone()) {
                open.push(target);
            }
        }
    }
    let told = linked(by_path[readme]);
    for page in &pages {
        let path = &page.path;
        if !found.contains(path) {
            findings.push(format!("{}: no page leads to it", path.display()));
        }
        if path.parent() == Some(Path::new("docs")) && !told.contains(path) {
            findings.push(format!("README.md: does not link {}", path.display()));
        }
        // To the README of the repository, or of one of its parent folders.
        let leads_back = linked(page).iter().any(|target| {
            let folder = target.parent().unwrap_or(Path::new(""));
            target.ends_with("README.md") && target != path && path.starts_with(folder)
        });
        if path != readme && !leads_back {
            findings.push(format!("{}: does not lead back to the README", path.display()));
        }
    }
    assert_tidy(&findings);
}

#[test]
fn each_flag_that_a_page_names_is_there() {
    let flags = reference::all_flags();
    let known = |flag: &str| flags.contains(flag) || FOREIGN_FLAGS.contains(&flag);
    let mut findings = Vec::new();
    // The changelog may name what no longer exists.
    for page in pages().iter().filter(|page| page.path != Path::new("CHANGELOG.md")) {
        let here = |line: usize| format!("{}:{line}", page.path.display());
        for (line, span) in page.code_spans().into_iter().filter(|(_, span)| span.starts_with("--")) {
            for flag in flags_of(span).filter(|flag| !known(flag)) {
                findings
                    .push(format!("{}: `{flag}` is no flag; if it is another program's, name that too", here(line)));
            }
        }
        let commands = page.commands();
        let spans = page.code_spans().into_iter().map(|(line, span)| (line, span.to_owned()));
        for (line, command) in commands.into_iter().chain(spans) {
            for ours in commands_of_the_relay(&command) {
                for flag in flags_of(ours).filter(|flag| !flags.contains(*flag)) {
                    findings.push(format!("{}: etcd-relay has no flag `{flag}`", here(line)));
                }
            }
        }
    }
    assert_tidy(&findings);
}

#[test]
fn each_variable_that_a_page_names_is_read() {
    let mut known: BTreeSet<String> = reference::all_variables();
    for folder in ["src", "tests", "benches", "scripts", ".ci", "Makefile"] {
        for text in texts_below(&root().join(folder)) {
            known.extend(words(&text).filter(|word| word.starts_with("ETCD_RELAY_")).map(str::to_owned));
        }
    }
    let mut findings = Vec::new();
    for page in pages() {
        for word in words(&page.text).filter(|word| word.starts_with("ETCD_RELAY_") && *word != "ETCD_RELAY_") {
            if !known.contains(word) {
                findings.push(format!("{}: nothing reads {word}", page.path.display()));
            }
        }
    }
    assert_tidy(&findings);
}

#[test]
fn each_metric_that_a_page_names_is_there() {
    let metrics: BTreeSet<String> = metrics_in(&read("src/telemetry/names.rs")).into_values().collect();
    let mut findings = Vec::new();
    for page in pages() {
        for word in words(&page.text).filter(|word| word.starts_with("etcd_relay_")) {
            // A histogram's series have suffixes, and a page may name a family of metrics by its prefix.
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            let is_family = word.ends_with('_') && metrics.iter().any(|metric| metric.starts_with(word));
            if !is_family && ![word, base].into_iter().any(|name| metrics.contains(name)) {
                findings.push(format!("{}: `{word}` is no metric", page.path.display()));
            }
        }
    }
    assert_tidy(&findings);
}

/// All pages of this repository, without those of other projects.
fn pages() -> Vec<Page> {
    fn collect(folder: &Path, pages: &mut Vec<Page>) {
        let mut entries: Vec<_> = fs::read_dir(folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let foreign = ["target", "node_modules", "venv"].contains(&name.as_str()) || name.starts_with('.');
            if path.is_dir() && !foreign {
                collect(&path, pages);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).expect("a page is text");
                let path = path.strip_prefix(root()).expect("below the root").to_owned();
                pages.push(Page { path, text });
            }
        }
    }
    let mut pages = Vec::new();
    collect(root(), &mut pages);
    assert!(pages.len() > 10, "found {} pages", pages.len());
    pages
}

fn texts_below(path: &Path) -> Vec<String> {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("a folder");
        return entries.flat_map(|entry| texts_below(&entry.expect("an entry").path())).collect();
    }
    fs::read_to_string(path).into_iter().collect()
}

/// The commands in a line that run the relay, each without the rest of the shell line.
fn commands_of_the_relay(line: &str) -> impl Iterator<Item = &str> {
    line.split("etcd-relay ").skip(1).filter_map(|rest| {
        let command = rest.split(['|', '&', ';', '#', '`']).next()?;
        let subcommand = command.split_whitespace().next()?;
        reference::COMMANDS.contains(&subcommand).then_some(command)
    })
}

fn flags_of(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',', '(', ')', '\'', '"', '[', ']']).filter_map(|word| {
        let name = word.strip_prefix("--")?;
        let end = name.find(|char: char| !char.is_ascii_alphanumeric() && char != '-').unwrap_or(name.len());
        (end > 0).then(|| &word[..end + 2])
    })
}

#[test]
fn flags_are_found_in_commands() {
    let line = "kubectl --no && etcd-relay serve --etcd=http://x --prefix \"/a/\" | grep --no";
    let found: Vec<_> = commands_of_the_relay(line).flat_map(flags_of).collect();
    assert_eq!(found, ["--etcd", "--prefix"]);
    assert_eq!(commands_of_the_relay("docker run etcd-relay --no").count(), 0);
}
