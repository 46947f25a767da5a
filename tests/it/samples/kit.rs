//! [`Kit`]: how the samples of a language are started; [`Sample`]: a running sample; [`Line`]: a line of its output.
//!
//! Not here: the servers around them, see `scene`. A language without its tools or libraries is left out, and the
//! reason is printed once per test. Rust programs are built by the cargo that runs the tests, in the same profile, so
//! that their dependencies are built already.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use rustix::process::Signal;

use crate::support::{eventually_within, patience, process::Process};

/// How the samples of a language are started.
#[derive(Clone, Debug)]
pub struct Kit {
    /// The folder in `examples`, such as `go`.
    pub language: &'static str,
    /// The command before a program's arguments, with `{}` for the program's name.
    command: Vec<String>,
}

impl Kit {
    /// The kits for this machine.
    pub fn all() -> Vec<Self> {
        static ALL: OnceLock<Vec<Result<Kit, String>>> = OnceLock::new();
        let all = ALL.get_or_init(|| vec![rust(), go(), python(), curl()]);
        all.iter()
            .filter_map(|kit| kit.as_ref().inspect_err(|reason| println!("SKIPPED: {reason}")).ok().cloned())
            .collect()
    }

    /// Starts a program, such as `discover`, with its output in this folder.
    pub fn start(&self, program: &str, arguments: &[&str], env: &[(String, String)], folder: &Path) -> Sample {
        let name = format!("{program} in {}", self.language);
        let mut command: Vec<String> = self.command.iter().map(|part| part.replace("{}", program)).collect();
        command.extend(arguments.iter().map(ToString::to_string));
        let log = folder.join(format!("{program}-{}.log", self.language));
        let process = Process::spawn(&name, &command, env, &log);
        Sample { name, member: self.language.to_owned(), process }
    }
}

fn rust() -> Result<Kit, String> {
    let relay = Path::new(env!("CARGO_BIN_EXE_etcd-relay"));
    let folder = relay.parent().expect("a program is in a folder");
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--locked", "--quiet", "--examples"]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    output(&mut cargo).map_err(|reason| format!("the samples in Rust were not built: {reason}"))?;
    Ok(Kit { language: "rust", command: vec![text(&folder.join("examples/{}"))] })
}

fn go() -> Result<Kit, String> {
    let folder = brought("go")?;
    Ok(Kit { language: "go", command: vec![format!("{folder}/{{}}")] })
}

fn python() -> Result<Kit, String> {
    let program = brought("python")?;
    Ok(Kit { language: "python", command: vec![program, "-B".to_owned(), text(&examples().join("python/{}.py"))] })
}

fn curl() -> Result<Kit, String> {
    for tool in ["curl", "base64", "mkfifo", "od"] {
        output(Command::new("sh").args(["-c", &format!("command -v {tool}")]))
            .map_err(|_| format!("the samples with curl need {tool}, which is not on PATH"))?;
    }
    Ok(Kit { language: "curl", command: vec!["sh".to_owned(), text(&examples().join("curl/{}.sh"))] })
}

/// What `scripts/samples` prints.
fn brought(language: &str) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/samples");
    output(Command::new(script).arg(language)).map_err(|reason| format!("the samples in {language}: {reason}"))
}

/// The output of a command, or its error output if it failed.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of text").to_owned()
}

/// A running sample.
#[derive(Debug)]
pub struct Sample {
    /// For people.
    pub name: String,
    /// The member that it registers, if any.
    pub member: String,
    /// The process.
    pub process: Process,
}

impl Sample {
    /// Everything that it printed, after a line break, so that each line follows one.
    pub fn log(&self) -> String {
        format!("\n{}", self.process.log())
    }

    /// All whole lines.
    pub fn lines(&self) -> Vec<Line> {
        let log = self.process.log();
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| Line { text: line.to_owned() }).collect()
    }

    /// Waits for a line.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Line) -> bool) -> Line {
        let what = format!("{}: {what}", self.name);
        eventually_within(patience(), &what, async || self.lines().into_iter().find(&wanted)).await
    }

    /// Sends SIGTERM. It must exit by itself, with success.
    pub async fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        let code = self.process.exit_code(patience()).await;
        assert_eq!(code, 0, "{} ended with {code}", self.name);
    }
}

/// A line that a sample printed.
#[derive(Clone, Debug)]
pub struct Line {
    /// The unchanged text.
    pub text: String,
}

impl Line {
    /// The revision of a configuration that is in use from now on.
    pub fn configured(&self) -> Option<i64> {
        number_after(&self.text, "configuration of revision ")
    }

    /// The revision of a configuration that was refused.
    pub fn refused(&self) -> Option<i64> {
        number_after(&self.text, "refused revision ")
    }

    /// The revision of a list.
    pub fn listed(&self) -> Option<i64> {
        number_after(&self.text, "listed at revision ")
    }

    /// The revision of a change of a member.
    pub fn changed_in(&self) -> Option<i64> {
        let (_, number) = self.text.rsplit_once("(revision ")?;
        number.strip_suffix(')')?.parse().ok()
    }

    /// Whether the line is about this member.
    pub fn is_change(&self) -> bool {
        ["+ ", "- ", "~ "].iter().any(|sign| self.text.starts_with(sign))
    }
}

fn number_after(text: &str, prefix: &str) -> Option<i64> {
    text.strip_prefix(prefix)?.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
}
