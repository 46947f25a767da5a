//! Tests of each of etcd's flags, and of the syntax of flags.

use std::process::Command;

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

/// A value other than the harmless default.
fn sample(flag: &Flag) -> &'static str {
    match (flag.name, flag.kind) {
        ("listen-addr", _) => "127.0.0.1:1234",
        ("metrics-addr", _) => "http://127.0.0.1:4001",
        ("permit-without-stream", _) => "false",
        (_, Kind::Bool) => "true",
        ("advertise-client-url", _) => "http://10.0.0.1:23790",
        (_, Kind::String | Kind::Strings) => "something",
        (_, Kind::Duration) => "7s",
        (_, Kind::Int | Kind::Uint32) => "7",
    }
}

/// Flags that name files, or have no effect without such flags.
const TLS: [&str; 13] = [
    "auto-tls",
    "cacert",
    "cert",
    "cert-file",
    "client-crl-file",
    "insecure-skip-tls-verify",
    "key",
    "key-file",
    "listen-cipher-suites",
    "self-signed-cert-validity",
    "tls-max-version",
    "tls-min-version",
    "trusted-ca-file",
];

#[test]
fn flags_of_tls_work_together_and_say_what_they_lack() {
    let folder = tempfile::tempdir().expect("a folder");
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let file = |name: &str, pem: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).expect("written");
        path.display().to_string()
    };
    let (cert, key) = (file("cert.pem", cert.pem()), file("key.pem", signing_key.serialize_pem()));
    let config = |flags: &[String]| proxy(&flags.iter().map(String::as_str).collect::<Vec<_>>()).config;
    let port = config(&[format!("--cert-file={cert}"), format!("--key-file={key}")]).grpc;
    assert!(port.addresses[0].secure && port.tls.is_some(), "{port:?}");
    let port = config(&[
        "--auto-tls".to_owned(),
        "--self-signed-cert-validity=2".to_owned(),
        format!("--trusted-ca-file={cert}"),
        "--listen-cipher-suites=TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned(),
    ])
    .grpc;
    assert!(port.tls.expect("TLS").asks_for_certificates());
    let mut params = rcgen::CertificateParams::default();
    let pair = |file_name: &str, params: &rcgen::CertificateParams| {
        let signing_key = rcgen::KeyPair::generate().expect("a key");
        let cert = params.self_signed(&signing_key).expect("a certificate").pem();
        (file(&format!("{file_name}.pem"), cert), file(&format!("{file_name}.key"), signing_key.serialize_pem()))
    };
    params.distinguished_name = rcgen::DistinguishedName::new();
    let (unnamed, unnamed_key) = pair("unnamed", &params);
    params.distinguished_name.push(rcgen::DnType::CommonName, "somebody");
    let (named, named_key) = pair("named", &params);
    let Upstream::Etcd(etcd) = config(&[
        format!("--cacert={cert}"),
        format!("--cert={unnamed}"),
        format!("--key={unnamed_key}"),
        "--endpoints=a:1,http://b:1".to_owned(),
    ])
    .upstream
    else {
        panic!("no etcd")
    };
    assert_eq!(etcd.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(), ["https://a:1", "http://b:1"]);
    assert!(etcd.tls.expect("TLS").has_certificate());
    let port = config(&["--auto-tls".to_owned(), "--tls-min-version=TLS1.3".to_owned()]).grpc;
    assert!(format!("{:?}", port.tls).contains("min: Tls13"), "{port:?}");
    let unneeded =
        proxy(&["--client-crl-file=/nowhere", "--cert=/nowhere", "--key=/nowhere", "--endpoints=http://a:1"]);
    for (warning, said) in unneeded.warnings.iter().zip(["without --trusted-ca-file", "no URL of --endpoints"]) {
        assert!(warning.contains(said), "{:?}", unneeded.warnings);
    }
    assert_eq!(unneeded.warnings.len(), 2);
    for (flags, named) in [
        (&["--cert-file", &cert][..], "--key-file"),
        (&["--cert", &cert], "--key"),
        (&["--cert-file", &cert, "--key-file", &cert], "private key"),
        (&["--auto-tls", "--trusted-ca-file", &key], "certificate"),
        (&["--auto-tls", "--trusted-ca-file=/nowhere"], "/nowhere"),
        (&["--trusted-ca-file", &cert], "https://"),
        (&["--auto-tls", "--client-crl-file=/nowhere", "--trusted-ca-file", &cert], "/nowhere"),
        (&["--auto-tls", "--tls-min-version=TLS1.1"], "--tls-min-version"),
        (&["--auto-tls", "--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"], "--tls-max-version"),
        (&["--cert", &named, "--key", &named_key], "cert has non empty Common Name (somebody)"),
        (&["--auto-tls", "--listen-cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA"], "TLS_RSA_WITH_AES_128_CBC_SHA"),
    ] {
        let text = proxy_refused(flags);
        assert!(text.contains(named), "{flags:?}: {text}");
    }
}

#[test]
fn each_flag_does_what_its_row_says() {
    let plain = format!("{:?}", proxy(&[]).config);
    for flag in FLAGS.iter().filter(|flag| !TLS.contains(&flag.name)) {
        let argument = format!("--{}={}", flag.name, sample(flag));
        match flag.means {
            // They set where the relay registers, and are only valid together.
            Means::Works if flag.name.starts_with("resolver-") => {
                assert!(proxy_refused(&[&argument]).contains("--resolver-"), "{argument}");
            }
            // They set what is looked up, and the look-up happens at the start.
            Means::Works if flag.name.contains("discovery") => {
                let discovery = |flags: &[&str]| Given::parse(flags).expect("parsed").expect("no help").discovery();
                let domain = "--discovery-srv=example.org";
                assert_ne!(discovery(&[domain, &argument]), discovery(&[domain]), "{argument} changes nothing");
            }
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
#[expect(clippy::print_stderr, reason = "the reader of the output should see which tests were skipped")]
fn the_table_has_each_flag_of_etcds_help() {
    let etcd = env::var_os("ETCD").unwrap_or_else(|| "etcd".into());
    let output = match Command::new(&etcd).args(["grpc-proxy", "start", "--help"]).output() {
        Ok(output) => output,
        Err(error) if env::var_os("ETCD").is_none() => {
            eprintln!("skipped: there is no etcd on PATH whose flags could be compared ({error})");
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
    assert_eq!(grpc(&[]).addresses[0].to_string(), "http://127.0.0.1:23790");
    assert_eq!(grpc(&["--listen-addr", "127.0.0.1:1"]).addresses[0].to_string(), "http://127.0.0.1:1");
    assert_eq!(grpc(&["--listen-addr=127.0.0.1:1", "--listen-addr=127.0.0.1:2"]).addresses[0].addr.port(), 2);
    assert!(grpc(&["--listen-addr=:5"]).addresses[0].addr.ip().is_unspecified());
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
fn a_relay_names_itself_and_registers_as_etcds_proxy_does() {
    let url = ["--advertise-client-url", "http://10.0.0.1:23790/"];
    let alone = proxy(&url).config.advertise.expect("advertised");
    assert_eq!((&*alone.advertised.url, alone.advertised.prefix), ("http://10.0.0.1:23790", None));
    let all = proxy(&[&url[..], &["--resolver-prefix", "/relays", "--resolver-ttl=60"]].concat());
    let all = all.config.advertise.expect("advertised");
    assert_eq!((all.advertised.prefix.as_deref(), all.ttl), (Some("/relays"), Duration::from_secs(60)));
    assert!(proxy(&[]).config.advertise.is_none());
    for (flags, told) in [(&[][..], "http://10.0.0.1:1"), (&["--auto-tls"], "https://10.0.0.1:1")] {
        let bare = proxy(&[flags, &["--advertise-client-url=10.0.0.1:1"]].concat()).config.advertise;
        assert_eq!(bare.expect("advertised").advertised.url, told);
    }
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
fn words_that_are_no_flags_have_no_effect_and_cause_a_warning() {
    let start = proxy(&["stray", "--debug", "false", "--endpoints=http://a:1"]);
    assert_eq!(start.warnings.len(), 2, "{:?}", start.warnings);
    assert!(start.warnings[0].contains("`stray`") && start.warnings[1].contains("`false`"), "{:?}", start.warnings);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (flags, named) in [
        (&["--endpoints", "ftp://etcd:2379"][..], "--endpoints"),
        (&["--endpoints", ""], "--endpoints"),
        (&["--listen-addr", "nowhere"], "--listen-addr"),
        (&["--metrics-addr", "https://127.0.0.1:1"], "--metrics-addr"),
        (&["--debug=maybe"], "--debug"),
        (&["--dial-keepalive-time", "20"], "--dial-keepalive-time"),
        (&["--max-concurrent-streams", "-1"], "--max-concurrent-streams"),
        (&["--listen-addr"], "--listen-addr needs a value"),
        (&["--advertise-client-url", "nowhere"], "--advertise-client-url"),
        (&["--resolver-prefix", "/relays", "--advertise-client-url", "http://a:1"], "--resolver-ttl"),
        (&["--resolver-prefix", "/relays", "--resolver-ttl", "9"], "--advertise-client-url"),
        (&["--resolver-ttl", "9"], "--resolver-prefix"),
        (&["--prefix", "/x"], "--prefix"),
    ] {
        let text = proxy_refused(flags);
        assert!(text.contains(named), "{flags:?}: {text}");
    }
}
