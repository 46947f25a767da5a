//! `etcd-relay version`, `completions` and `man`: the texts about the program itself.
//!
//! Called for `main`, and by the scripts that build packages. Always holds: the texts come from the same definitions as
//! `--help`.

use std::{fmt, io, path::PathBuf};

use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use thiserror::Error;

use super::{Cli, Exit, Task};

/// What the program was built from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// The commit, if it was built in a checkout or the build set it.
    pub commit: Option<&'static str>,
}

/// The commit that git recorded last. It is read at compile time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    hash: [u8; Self::LONGEST],
    len: usize,
}

/// Prints a shell script that completes commands and flags.
#[derive(Debug, Args)]
pub(super) struct CompletionsCommand {
    /// Shell to generate the script for
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints one manual page, or writes all of them to a directory.
#[derive(Debug, Args)]
pub(super) struct ManCommand {
    /// Command whose page to print, such as serve or bench watch. Default: the page of etcd-relay itself, which lists
    /// the others
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,

    /// Directory to write the pages of all commands to, such as /usr/share/man/man1; it must exist
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Manual pages to write to a directory.
#[derive(Clone, Debug)]
pub struct ManualPages {
    dir: PathBuf,
}

/// Why the manual pages cannot be written.
#[derive(Debug, Error)]
#[error("cannot write manual pages to {}", dir.display())]
pub struct ManualError {
    dir: PathBuf,
    #[source]
    cause: io::Error,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd-relay {} (commit {})", env!("CARGO_PKG_VERSION"), self.commit.unwrap_or("unknown"))
    }
}

impl Build {
    pub(super) fn exit(self) -> Exit {
        Exit::Text(format!("{self}\n").into_bytes())
    }
}

impl Commit {
    /// The length of a SHA-256 hash. A SHA-1 hash has 40 digits.
    const LONGEST: usize = 64;

    /// The new commit in the last line of a reflog (`OLD NEW WHO WHEN WHY`), if there is one.
    #[must_use]
    pub const fn last_of(log: &[u8]) -> Self {
        let mut commit = Self { hash: [0; Self::LONGEST], len: 0 };
        let mut from = log.len().saturating_sub(1);
        while from > 0 && log[from - 1] != b'\n' {
            from -= 1;
        }
        while from < log.len() && log[from] != b' ' {
            from += 1;
        }
        from += 1;
        while from < log.len() && log[from].is_ascii_hexdigit() && commit.len < Self::LONGEST {
            commit.hash[commit.len] = log[from];
            commit.len += 1;
            from += 1;
        }
        if commit.len != 40 && commit.len != Self::LONGEST {
            commit.len = 0;
        }
        commit
    }

    /// The hash; `None` if no commit is known.
    #[must_use]
    pub fn hash(&'static self) -> Option<&'static str> {
        std::str::from_utf8(&self.hash[..self.len]).ok().filter(|hash| !hash.is_empty())
    }
}

impl CompletionsCommand {
    pub(super) fn exit(&self) -> Exit {
        let mut command = commands();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        Exit::Text(script)
    }
}

impl ManCommand {
    pub(super) fn task(self) -> Result<Task, Exit> {
        if let Some(dir) = self.dir {
            return Ok(Task::Manual(ManualPages { dir }));
        }
        let mut command = commands().disable_help_subcommand(true);
        command.build();
        for name in &self.command {
            let found = command.find_subcommand(name).cloned();
            command = found.ok_or_else(|| {
                Exit::Usage(format!("`{}` is not a command; `etcd-relay --help` lists them", self.command.join(" ")))
            })?;
        }
        let mut page = Vec::new();
        Man::new(command).render(&mut page).map_err(|error| Exit::Usage(format!("cannot make the page: {error}")))?;
        Err(Exit::Text(page))
    }
}

impl ManualPages {
    /// Writes the pages: `etcd-relay.1`, `etcd-relay-serve.1` and so on.
    ///
    /// # Errors
    /// Fails if a file cannot be written to the directory.
    pub fn write(&self) -> Result<(), ManualError> {
        clap_mangen::generate_to(commands().disable_help_subcommand(true), &self.dir)
            .map_err(|cause| ManualError { dir: self.dir.clone(), cause })
    }
}

/// All commands with their flags, as `--help` shows them. For what is made from them: pages, manuals, completions.
#[must_use]
pub fn commands() -> Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::super::tests::{arguments, refused};
    use super::*;

    fn text(line: &[&str]) -> String {
        match parse(arguments(line), Build { commit: Some("c0ffee") }) {
            Err(Exit::Text(text)) => String::from_utf8(text).expect("UTF-8"),
            other => panic!("{line:?} gives {other:?}"),
        }
    }

    #[test]
    fn the_version_names_the_commit() {
        assert_eq!(text(&["version"]), format!("etcd-relay {} (commit c0ffee)\n", env!("CARGO_PKG_VERSION")));
        assert!(Build::default().to_string().ends_with("(commit unknown)"));
    }

    #[test]
    fn the_commit_is_that_of_the_last_line_of_the_reflog() {
        const OLD: &str = "0000000000000000000000000000000000000000";
        const NEW: &str = "6dbe0f3d2c0e4d0c2f3f0c5a1b2c3d4e5f60718a";
        let commit = |log: &str| Commit::last_of(log.as_bytes());
        let hash = |log: &str| {
            let commit = commit(log);
            std::str::from_utf8(&commit.hash[..commit.len]).expect("text").to_owned()
        };
        let first = format!("{OLD} {OLD} A <a@b> 1700000000 +0000\tcommit (initial): x\n");
        assert_eq!(hash(&format!("{first}{OLD} {NEW} A <a@b> 1700000001 +0000\tcommit: y\n")), NEW);
        let long = "ab".repeat(32);
        assert_eq!(hash(&format!("{long} {long} A <a@b> 1700000001 +0000\tcommit: y")), long);
        for log in ["", "\n", "x", "a b c\n", &format!("{OLD} {}\n", &NEW[1..])] {
            assert_eq!(hash(log), "", "{log:?}");
        }
    }

    #[test]
    fn completions_know_commands_and_flags() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = text(&["completions", shell]);
            assert!(script.contains("history-bytes") && script.contains("grpc-proxy"), "{shell}: {script}");
        }
        assert!(refused(&["completions", "tcsh"]).contains("bash"));
    }

    #[test]
    fn a_page_shows_what_its_command_takes() {
        let page = text(&["man"]);
        assert!(page.starts_with(".ie") && page.contains("etcd\\-relay\\-serve(1)"), "{page}");
        assert!(text(&["man", "serve"]).contains("ETCD_RELAY_HISTORY_BYTES"));
        assert!(text(&["man", "bench", "watch"]).contains("\\-\\-connections"));
        assert!(refused(&["man", "bench", "fly"]).contains("bench fly"));
    }

    #[test]
    fn all_pages_go_to_a_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let line = ["man", "--dir", dir.path().to_str().expect("a path")];
        let Ok(Task::Manual(pages)) = parse(arguments(&line), Build::default()) else { panic!("no pages") };
        pages.write().expect("written");
        for page in ["etcd-relay.1", "etcd-relay-serve.1", "etcd-relay-top.1", "etcd-relay-bench-watch.1"] {
            assert!(dir.path().join(page).metadata().is_ok_and(|page| page.len() > 100), "{page}");
        }
        dir.close().expect("removed");
        assert!(pages.write().expect_err("no directory").to_string().contains("cannot write manual pages to /"));
    }
}
