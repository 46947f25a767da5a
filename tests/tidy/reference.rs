//! Makes the pages that come from the code: all flags, from the definitions of the command line, and all metrics, from
//! the output of a relay that has just started.
//!
//! Not here: the beginning of each page, up to the line [`MADE`], which is written by hand. `make docs` writes the
//! rest, and the tests fail if a page differs from the code. Always holds: everything on a page is in the program, and
//! the reverse.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
    fs,
};

use clap::{Arg, ArgAction, Command};
use etcd_relay::{
    cli,
    telemetry::{
        names::{self, GatewayOutcome, LeaveReason, Port, Present, Service},
        recorder::Metrics,
    },
};
use metrics::{counter, histogram};

use super::{help_of, markdown::slug, metrics_in, read, root};

/// The rest of a page below this line is generated.
const MADE: &str = "<!-- Made from the code: change it there, and run `make docs`. -->";

/// The commands of the program.
pub(crate) const COMMANDS: &[&str] =
    &["serve", "demo", "bench", "top", "health", "version", "completions", "man", "grpc-proxy"];

#[test]
fn docs_flags_is_what_the_command_line_takes() {
    let mut page = String::new();
    let program = program();
    let names: Vec<&str> = program.get_subcommands().map(Command::get_name).filter(|name| *name != "help").collect();
    assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), COMMANDS.iter().copied().collect());
    let mut told = Vec::new();
    for name in COMMANDS {
        let command = program.find_subcommand(name).expect("a command");
        write_command(&mut page, &format!("etcd-relay {name}"), command, &mut told);
        if *name == "grpc-proxy" {
            write_grpc_proxy(&mut page);
        }
    }
    compare("docs/flags.md", &page);
}

#[test]
fn docs_metrics_is_what_a_relay_shows() {
    let shown = shown_metrics();
    let declared: BTreeSet<String> = metrics_in(&read("src/telemetry/names.rs")).into_values().collect();
    let ours: BTreeSet<String> = shown.keys().filter(|name| name.starts_with("etcd_relay_")).cloned().collect();
    assert_eq!(ours, declared, "a relay that has everything shows each metric that is declared");

    let sets = label_sets();
    let mut page = String::from("## All metrics\n\n| metric | type | labels | |\n|---|---|---|---|\n");
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let (of_relay, of_process): (Vec<_>, Vec<_>) = shown.iter().partition(|(name, _)| name.starts_with("etcd_relay_"));
    for (name, metric) in &of_relay {
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|(label, values)| match set_of(&sets, label, values) {
                Some(set) => {
                    used.insert(&set.title);
                    format!("[`{label}`](#{})", slug(&set.title))
                }
                None => format!("`{label}`"),
            })
            .collect();
        writeln!(page, "| `{name}` | {} | {} | {} |", metric.kind, labels.join(", "), prose(&metric.help))
            .expect("text grows");
    }
    page.push_str("\nOf the process, as for any program that Prometheus' client libraries measure:\n\n| metric | type | |\n|---|---|---|\n");
    for (name, metric) in &of_process {
        writeln!(page, "| `{name}` | {} | {} |", metric.kind, prose(&metric.help)).expect("text grows");
    }
    page.push_str("\n## Label values\n");
    for set in &sets {
        assert!(used.contains(set.title.as_str()), "no metric has the label of {}", set.title);
        write!(page, "\n### {}\n\n| `{}` | |\n|---|---|\n", set.title, set.label).expect("text grows");
        for (value, meaning) in &set.values {
            writeln!(page, "| `{value}` | {} |", prose(meaning)).expect("text grows");
        }
    }
    compare("docs/metrics.md", &page);
}

/// Every flag of every command, and of `grpc-proxy start`.
pub(crate) fn all_flags() -> BTreeSet<String> {
    fn collect(command: &Command, flags: &mut BTreeSet<String>) {
        for arg in command.get_arguments() {
            let names = arg.get_long().into_iter().chain(arg.get_visible_aliases().unwrap_or_default());
            flags.extend(names.map(|name| format!("--{name}")));
        }
        command.get_subcommands().for_each(|command| collect(command, flags));
    }
    let mut flags = BTreeSet::from(["--help".to_owned(), "--version".to_owned()]);
    collect(&program(), &mut flags);
    flags.extend(grpc_proxy_sections().into_values().flatten().map(|(flag, _)| flag));
    flags
}

/// Every environment variable of a flag.
pub(crate) fn all_variables() -> BTreeSet<String> {
    fn collect(command: &Command, variables: &mut BTreeSet<String>) {
        let named = command.get_arguments().filter_map(Arg::get_env);
        variables.extend(named.map(|name| name.to_string_lossy().into_owned()));
        command.get_subcommands().for_each(|command| collect(command, variables));
    }
    let mut variables = BTreeSet::new();
    collect(&program(), &mut variables);
    variables
}

fn program() -> Command {
    let mut program = cli::commands();
    program.build();
    program
}

/// A row of the page.
#[derive(Clone, PartialEq, Eq)]
struct Row {
    name: String,
    text: String,
}

fn write_command(page: &mut String, title: &str, command: &Command, told: &mut Vec<(String, Row)>) {
    let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string).unwrap_or_default();
    write!(page, "## {title}\n\n{}\n", paragraph(&about)).expect("text grows");
    let mut groups: Vec<(&str, Vec<Row>)> = Vec::new();
    for arg in command.get_arguments().filter(|arg| !is_everywhere(arg) && !arg.is_hide_set()) {
        let heading = arg.get_help_heading().unwrap_or_default();
        let row = row(arg);
        match groups.iter_mut().find(|(group, _)| *group == heading) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((heading, vec![row])),
        }
    }
    // Flags without a heading come first in the help as well.
    groups.sort_by_key(|(heading, _)| !heading.is_empty());
    let mut like: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (heading, rows) in groups {
        let (same, own): (Vec<Row>, Vec<Row>) =
            rows.into_iter().partition(|row| told.iter().any(|(_, before)| before == row));
        for row in same {
            let (first, _) = told.iter().find(|(_, before)| *before == row).expect("it was told");
            like.entry(first.clone()).or_default().push(row.name);
        }
        if own.is_empty() {
            continue;
        }
        if !heading.is_empty() {
            write!(page, "\n### {title}: {heading}\n").expect("text grows");
        }
        page.push_str("\n| flag and variable | default | |\n|---|---|---|\n");
        for row in own {
            page.push_str(&row.text);
            told.push((title.to_owned(), row));
        }
    }
    for (first, names) in like {
        write!(page, "\nAs [`{first}`](#{}): {}.\n", slug(&first), names.join(", ")).expect("text grows");
    }
    page.push('\n');
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        write_command(page, &format!("{title} {}", command.get_name()), command, told);
    }
}

/// Help and version, which each command has.
fn is_everywhere(arg: &Arg) -> bool {
    ["help", "version"].contains(&arg.get_id().as_str())
}

fn row(arg: &Arg) -> Row {
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let value = match arg.get_value_names() {
        Some([name, ..]) if takes && arg.get_num_args().is_some_and(|args| args.min_values() == 0) => {
            format!("[={name}]")
        }
        Some([name, ..]) if takes => format!(" {name}"),
        _ => String::new(),
    };
    let mut names: Vec<String> = match arg.get_long() {
        None => vec![format!("`{}`", value.trim())],
        Some(long) => {
            let short = arg.get_short().map(|short| format!("`-{short}`"));
            let aliases = arg.get_visible_aliases().unwrap_or_default();
            let long = std::iter::once(long).chain(aliases).map(|name| format!("`--{name}{value}`"));
            long.chain(short).collect()
        }
    };
    let name = arg.get_long().map_or_else(|| names[0].clone(), |long| format!("`--{long}`"));
    names.extend(arg.get_env().map(|variable| format!("`{}`", variable.to_string_lossy())));

    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let given: Vec<String> =
        arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
    let (help, default) = match help.rsplit_once("Default: ") {
        // `--flag`, without a value, is off.
        _ if !takes => (help.as_str(), "off".to_owned()),
        Some((help, default)) if given.is_empty() && !default.contains(". ") => {
            (help, if default.contains(' ') || default == "none" { prose(default) } else { format!("`{default}`") })
        }
        _ if given.is_empty() => (help.as_str(), String::new()),
        _ => (help.as_str(), format!("`{}`", given.join(","))),
    };
    let mut text = prose(help);
    let values: Vec<_> = arg.get_possible_values().into_iter().filter(|value| !value.is_hide_set()).collect();
    if takes && !values.is_empty() {
        let values: Vec<String> = values
            .iter()
            .map(|value| match value.get_help() {
                Some(help) => format!("`{}`: {}", value.get_name(), prose(&help.to_string())),
                None => format!("`{}`", value.get_name()),
            })
            .collect();
        text = format!("{}<br>{}", text.trim_end(), values.join("<br>"));
    }
    let text = format!("| {} | {default} | {} |\n", names.join("<br>"), text.trim().trim_end_matches('.'));
    Row { name, text }
}

/// The flags of etcd's proxy by section, in the order of the help. They are in a table, since clap does not parse them.
fn grpc_proxy_sections() -> BTreeMap<usize, Vec<(String, String)>> {
    let help = help_of(&["grpc-proxy", "start"]);
    let mut sections: BTreeMap<usize, Vec<(String, String)>> = BTreeMap::new();
    let mut section = 0;
    for line in help.lines() {
        if let Some((flag, meaning)) = line.strip_prefix("  --").and_then(|line| line.split_once(' ')) {
            sections.entry(section).or_default().push((format!("--{flag}"), meaning.trim().to_owned()));
        } else if line.ends_with(':') {
            section += 1;
        }
    }
    assert_eq!(sections.len(), 3, "what works, what is accepted and what is refused: {help}");
    sections
}

fn write_grpc_proxy(page: &mut String) {
    page.push_str("## etcd-relay grpc-proxy start\n");
    for (rows, title) in grpc_proxy_sections().into_values().zip(["flag", "accepted with a warning", "refused"]) {
        write!(page, "\n| {title} | |\n|---|---|\n").expect("text grows");
        for (flag, meaning) in rows {
            writeln!(page, "| `{flag}` | {} |", prose(&meaning)).expect("text grows");
        }
    }
}

/// A metric in a relay's output.
struct Shown {
    kind: String,
    help: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// All metrics of a relay with all features in use.
fn shown_metrics() -> BTreeMap<String, Shown> {
    let recorder = Metrics::install().expect("the only recorder of this process");
    names::begin(&Present {
        ports: Port::ALL.iter().map(|port| (*port, true)).collect(),
        leaves: vec![LeaveReason::Age, LeaveReason::Share],
        etcd: true,
        etcd_tls: true,
        etcd_v2: true,
        facade: true,
        batches: true,
        views: true,
    });
    // These start with the first call and the first stream.
    for service in Service::ALL {
        names::begin_forwarding(*service);
        for outcome in GatewayOutcome::ALL {
            counter!(names::GATEWAY_REQUESTS, Service::LABEL => service.as_str(), GatewayOutcome::LABEL => outcome.as_str())
                .absolute(0);
        }
    }
    histogram!(names::VIEW_LAG_SECONDS).record(0.0);

    let mut shown: BTreeMap<String, Shown> = BTreeMap::new();
    let text = recorder.render();
    for line in text.lines() {
        let told = ["# HELP ", "# TYPE "].into_iter().find_map(|mark| Some((mark, line.strip_prefix(mark)?)));
        if let Some((mark, (name, said))) = told.and_then(|(mark, rest)| Some((mark, rest.split_once(' ')?))) {
            let metric = shown.entry(name.to_owned()).or_insert_with(|| Shown {
                kind: String::new(),
                help: String::new(),
                labels: BTreeMap::new(),
            });
            *(if mark == "# TYPE " { &mut metric.kind } else { &mut metric.help }) = said.to_owned();
        }
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, labels)) = line.split_once('{').and_then(|(name, rest)| Some((name, rest.split_once('}')?.0)))
        else {
            continue;
        };
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let name = if shown.contains_key(name) { name } else { base };
        if let Some(metric) = shown.get_mut(name) {
            add_labels(metric, labels);
        }
    }
    shown
}

fn add_labels(metric: &mut Shown, labels: &str) {
    for (label, value) in labels.split("\",").filter_map(|pair| pair.split_once("=\"")) {
        if label != "le" {
            metric.labels.entry(label.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
        }
    }
}

/// The values of a label.
struct LabelSet {
    title: String,
    label: String,
    values: Vec<(String, String)>,
}

/// The values that `names` declares, with their comments.
fn label_sets() -> Vec<LabelSet> {
    let mut files = vec!["src/telemetry/names.rs".to_owned()];
    let mut below: Vec<String> = fs::read_dir(root().join("src/telemetry/names"))
        .expect("a folder")
        .map(|entry| format!("src/telemetry/names/{}", entry.expect("an entry").file_name().to_string_lossy()))
        .collect();
    below.sort();
    files.extend(below);
    let mut sets = Vec::new();
    for file in files {
        for block in read(&file).split("labels! {\n").skip(1).filter_map(|block| block.split("\n}\n").next()) {
            let mut said = String::new();
            let mut set: Option<LabelSet> = None;
            for line in block.lines().map(str::trim) {
                if let Some(comment) = line.strip_prefix("///") {
                    said = format!("{said} {}", comment.trim()).trim().to_owned();
                } else if let Some((_, label)) = line.split_once(" as \"") {
                    let label = label.trim_end_matches(['"', ' ', '{']).to_owned();
                    let title = format!("`{label}`: {}", lower_first(said.trim_end_matches('.')));
                    set = Some(LabelSet { title, label, values: Vec::new() });
                    said.clear();
                } else if let (Some((_, value)), Some(set)) = (line.split_once(" = \""), set.as_mut()) {
                    set.values.push((value.trim_end_matches(['"', ',']).to_owned(), std::mem::take(&mut said)));
                }
            }
            sets.extend(set);
        }
    }
    sets.sort_by(|one, other| one.title.cmp(&other.title));
    sets
}

/// The smallest set with these values.
fn set_of<'a>(sets: &'a [LabelSet], label: &str, values: &BTreeSet<String>) -> Option<&'a LabelSet> {
    sets.iter()
        .filter(|set| set.label == label)
        .filter(|set| values.iter().all(|value| set.values.iter().any(|(known, _)| known == value)))
        .min_by_key(|set| set.values.len())
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    // A name in capitals is kept.
    let is_name = text.chars().nth(1).is_some_and(char::is_uppercase);
    match chars.next() {
        Some(first) if !is_name => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// A text of the code as Markdown in one cell: flags, variables and paths become code, and nothing else is markup.
fn prose(text: &str) -> String {
    let mut out = String::new();
    for (index, part) in text.split('`').enumerate() {
        if index % 2 == 1 {
            write!(out, "`{}`", part.replace('|', "\\|")).expect("text grows");
            continue;
        }
        for word in part.split_inclusive(char::is_whitespace) {
            let trimmed = word.trim_end_matches(|char: char| char.is_whitespace() || ".,;:)".contains(char));
            let core = trimmed.trim_start_matches('(');
            let is_code = core.len() > 1
                && (core.starts_with("--") && core.len() > 2
                    || core.starts_with('/') && !core[1..].starts_with(|char: char| char.is_ascii_digit())
                    || core.starts_with('_')
                    || core.contains("://")
                    || core.contains('_')
                    || core.contains('=')
                    || core == "\"\"");
            if is_code {
                let open = &trimmed[..trimmed.len() - core.len()];
                write!(out, "{open}`{}`{}", core.replace('|', "\\|"), &word[trimmed.len()..]).expect("text grows");
            } else {
                out.push_str(&word.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*").replace('[', "\\["));
            }
        }
    }
    out.trim().to_owned()
}

/// A text of the code as paragraphs.
fn paragraph(text: &str) -> String {
    let text = prose(text);
    if text.ends_with(['.', ':', '!']) { text } else { format!("{text}.") }
}

/// Compares the generated text with the page, or writes it if called by `make docs`.
#[track_caller]
fn compare(path: &str, made: &str) {
    let page = read(path);
    let Some((head, _)) = page.split_once(MADE) else { panic!("{path} has no line {MADE}") };
    let wanted = format!("{head}{MADE}\n\n{}\n", made.trim());
    if wanted == page {
        return;
    }
    if env::var_os("ETCD_RELAY_WRITE_DOCS").is_some() {
        fs::write(root().join(path), wanted).expect("the page is written");
        return;
    }
    let differs = wanted.lines().zip(page.lines()).find(|(wanted, has)| wanted != has);
    let (wanted, has) = differs.unwrap_or(("(its end)", "(its end)"));
    panic!("{path} is not what the code says: run `make docs`.\n  code: {wanted}\n  page: {has}");
}

#[test]
fn texts_of_the_code_become_markdown() {
    for (text, expected) in [
        ("Written as --listen-grpc. See", "Written as `--listen-grpc`. See"),
        ("by user|token, <any>", "by user\\|token, &lt;any>"),
        ("(/live) or `*`, http://a:1, e.g. A=b", "(`/live`) or `*`, `http://a:1`, e.g. `A=b`"),
    ] {
        assert_eq!(prose(text), expected);
    }
    assert_eq!(lower_first("Why a watch ended"), "why a watch ended");
    assert_eq!(lower_first("TLS with clients"), "TLS with clients");
}
