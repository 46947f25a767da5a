//! Each flag of etcd's, and the syntax they come in.

use std::{env, process::Command};

use super::*;
use crate::cli::tests::{refused, started};

fn proxy(flags: &[&str]) -> Start {
    let line: Vec<&str> = ["grpc-proxy", "start"].iter().chain(flags).copied().collect();
    started(&line)
}

fn proxy_refused(flags: &[&str]) -> String {
    let line: Vec<&str> = ["grpc-proxy", "start"].iter().chain(flags).copied().collect();
    refused(&line)
}

/// A value that asks for something.
fn sample(flag: &Flag) -> &'static str {
    match (flag.name, flag.kind) {
        ("listen-addr", _) => "127.0.0.1:1234",
        ("metrics-addr", _) => "http://127.0.0.1:4001",
        ("permit-without-stream", _) => "false",
        (_, Kind::Bool) => "true",
        (_, Kind::String | Kind::Strings) => "something",
        (_, Kind::Duration) => "7s",
        (_, Kind::Int | Kind::Uint32) => "7",
    }
}

#[test]
fn each_flag_does_what_its_row_says() {
    let plain = format!("{:?}", proxy(&[]).config);
    for flag in FLAGS {
        let argument = format!("--{}={}", flag.name, sample(flag));
        match flag.means {
            Means::Works => {
                let start = proxy(&[&argument]);
                let changed =
                    format!("{:?}", start.config) != plain || start.logging != logging::LoggingConfig::default();
                assert!(changed, "{argument} changes nothing");
                assert!(start.warnings.is_empty(), "{argument} warns");
            }
            Means::Accepted(_) => {
                let start = proxy(&[&argument]);
                assert_eq!(format!("{:?}", start.config), plain, "{argument} changes something");
                assert_eq!(start.warnings.len(), 1, "{argument}: {:?}", start.warnings);
                assert!(start.warnings[0].contains(&format!("--{}:", flag.name)), "{:?}", start.warnings);
            }
            Means::Refused(_) => {
                let text = proxy_refused(&[&argument]);
                assert!(text.contains(&format!("--{} is not supported", flag.name)), "{text}");
            }
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "who runs the tests should know which were skipped")]
fn the_table_has_each_flag_of_etcds_help() {
    let etcd = env::var_os("ETCD").unwrap_or_else(|| "etcd".into());
    let output = match Command::new(&etcd).args(["grpc-proxy", "start", "--help"]).output() {
        Ok(output) => output,
        Err(error) if env::var_os("ETCD").is_none() => {
            eprintln!("skipped: no etcd on PATH to ask for its flags ({error})");
            return;
        }
        Err(error) => panic!("cannot run {}: {error}", etcd.display()),
    };
    let help = String::from_utf8(output.stdout).expect("UTF-8");
    let names: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().split_once("--"))
        .filter(|(before, _)| before.is_empty() || *before == "-h, ")
        .filter_map(|(_, rest)| rest.split_whitespace().next())
        .collect();
    assert!(names.len() > 30, "no flags found in: {help}");
    for name in names.iter().filter(|name| **name != "help") {
        assert!(FLAGS.iter().any(|flag| flag.name == *name), "--{name} is not in the table");
    }
}

#[test]
fn flags_are_written_as_go_takes_them() {
    let grpc = |flags: &[&str]| proxy(flags).config.grpc;
    assert_eq!(grpc(&[]).addr.to_string(), "127.0.0.1:23790");
    assert_eq!(grpc(&["--listen-addr", "127.0.0.1:1"]).addr.to_string(), "127.0.0.1:1");
    assert_eq!(grpc(&["--listen-addr=127.0.0.1:1", "--listen-addr=127.0.0.1:2"]).addr.port(), 2);
    assert_eq!(grpc(&["--listen-addr=:5"]).addr.to_string(), "[::]:5");
    assert_eq!(grpc(&["--max-concurrent-streams=0"]).max_streams, NonZeroU32::MAX);
    assert_eq!(grpc(&["--grpc-keepalive-interval=0s"]).keepalive, None);
    let interval = grpc(&["--grpc-keepalive-interval", "1h30m"]).keepalive.expect("pings").interval;
    assert_eq!(interval, Duration::from_secs(5400));
    assert_eq!(proxy(&["--debug"]).logging.filter, "info,etcd_relay=debug");
    assert_eq!(proxy(&["--debug=true", "--debug=false"]).logging.filter, "info");
    let Upstream::Etcd(etcd) = proxy(&["--endpoints=a:1,http://b:2", "--endpoints", "c"]).config.upstream else {
        panic!("no etcd")
    };
    assert_eq!(
        etcd.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["http://a:1", "http://b:2", "http://c:2379"]
    );
}

#[test]
fn harmless_defaults_are_taken_without_a_word() {
    let start = proxy(&[
        "--advertise-client-url",
        "",
        "--namespace",
        "",
        "--cacert=",
        "--auto-tls=false",
        "--insecure-skip-tls-verify=false",
        "--resolver-ttl=0",
    ]);
    assert!(start.warnings.is_empty(), "{:?}", start.warnings);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (flags, named) in [
        (&["--endpoints", "https://etcd:2379"][..], "--endpoints"),
        (&["--endpoints", ""], "--endpoints"),
        (&["--listen-addr", "nowhere"], "--listen-addr"),
        (&["--metrics-addr", "https://127.0.0.1:1"], "--metrics-addr"),
        (&["--debug=maybe"], "--debug"),
        (&["--dial-keepalive-time", "20"], "--dial-keepalive-time"),
        (&["--max-concurrent-streams", "-1"], "--max-concurrent-streams"),
        (&["--listen-addr"], "--listen-addr needs a value"),
        (&["--prefix", "/x"], "--prefix"),
        (&["stray"], "stray"),
    ] {
        let text = proxy_refused(flags);
        assert!(text.contains(named), "{flags:?}: {text}");
    }
}
