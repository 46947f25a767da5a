//! Checks of the names in rules, board and runbooks: each metric exists, and each label has the values that are
//! queried. A relay that has just started has the series that alerts need, since `increase` does not see the first step
//! of a series that starts with the trouble.

use std::collections::{BTreeMap, BTreeSet};

use etcd_relay::telemetry::names::{self, LeaveReason, Port, Present, Service};

use super::{BOARD, RULES, RUNBOOKS, read};
use crate::{
    support::{
        http,
        relay::RelayCommand,
        tls::{Authority, flag},
    },
    tls::SecureEtcd,
};

/// Labels that Prometheus adds to each series.
const OF_PROMETHEUS: [&str; 4] = ["job", "instance", "le", "__name__"];
/// Series that start with the first call of their kind, with all outcomes at once; and those of another kind of
/// upstream.
const LATER: [&str; 3] =
    ["etcd_relay_forwarded_total", "etcd_relay_v2_listings_total", "etcd_relay_v2_repaired_events_total"];

/// The labels of each metric, with their values.
type Known = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// A metric in a text, with the label matchers there.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    metric: String,
    labels: Vec<(String, Vec<String>)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_and_label_that_is_named_exists() {
    let ca = Authority::new("the authority");
    let etcd = SecureEtcd::start(&ca).await;
    let relay = etcd.relay(&ca, &ca.pair("own")).secure(&ca.pair("relay"));
    let relay = relay.arg(&flag("--trusted-ca-file", &ca.file())).arg("--resolver-prefix=/relays");
    let relay = relay.arg("--advertise-client-url=https://127.0.0.1:1").arg("--max-connection-age=1h");
    let text = relay_text(relay).await;
    for bound in ["etcd_relay_connections_limit", "etcd_relay_on_demand_limit_bytes"] {
        assert!(http::metric(&text, bound).is_some_and(|value| value > 0.0), "{bound}: {text}");
    }
    let begun = known(&text);
    let mut all = known(&text_of_all());
    for (metric, labels) in begun.clone() {
        let there = all.entry(metric).or_default();
        labels.into_iter().for_each(|(label, values)| there.entry(label).or_default().extend(values));
    }
    let mut findings = Vec::new();
    for file in [RULES, BOARD, RUNBOOKS] {
        let text = read(file).replace("\\\"", "\"");
        let named = named(&text);
        assert!(named.len() > 20, "{file} names {} metrics", named.len());
        for Named { metric, labels } in named {
            let Some(there) = all.get(&metric) else {
                findings.push(format!("{file}: there is no {metric}"));
                continue;
            };
            if file == RULES && !LATER.contains(&metric.as_str()) && !begun.contains_key(&metric) {
                findings.push(format!("{file}: a relay that has just begun has no {metric}"));
            }
            for (label, values) in labels.iter().filter(|(label, _)| !OF_PROMETHEUS.contains(&label.as_str())) {
                let known = there.get(label);
                for value in values.iter().filter(|value| !value.contains(['$', '*', '+'])) {
                    if known.is_none_or(|known| !known.contains(value)) {
                        findings.push(format!("{file}: {metric} has no {label}=\"{value}\""));
                    }
                }
            }
        }
    }
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

async fn relay_text(command: RelayCommand) -> String {
    let relay = command.start().await;
    relay.follows().await;
    relay.metrics().await
}

/// All series that a relay can start with.
fn text_of_all() -> String {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        names::describe();
        names::begin(&Present {
            ports: Port::ALL.iter().map(|port| (*port, true)).collect(),
            leaves: LeaveReason::ALL.to_vec(),
            etcd: true,
            etcd_tls: true,
            etcd_v2: true,
            facade: true,
            batches: true,
            views: true,
        });
        for service in Service::ALL {
            for outcome in names::Outcome::ALL {
                let labels = [(Service::LABEL, service.as_str()), (names::Outcome::LABEL, outcome.as_str())];
                metrics::counter!(names::FORWARDED, &labels).absolute(0);
            }
            for outcome in names::GatewayOutcome::ALL {
                let labels = [(Service::LABEL, service.as_str()), (names::GatewayOutcome::LABEL, outcome.as_str())];
                metrics::counter!(names::GATEWAY_REQUESTS, &labels).absolute(0);
            }
        }
    });
    let mut text = handle.render();
    // It has no sample before the first view.
    for end in ["bucket", "sum", "count"] {
        text.push_str(&format!("{}_{end} 0\n", names::VIEW_LAG_SECONDS));
    }
    text
}

fn known(text: &str) -> Known {
    let mut known = Known::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, _)) = line.rsplit_once(' ') else { continue };
        for Named { metric, labels } in named(series) {
            let there = known.entry(metric).or_default();
            labels.into_iter().for_each(|(label, values)| there.entry(label).or_default().extend(values));
        }
    }
    known
}

/// The relay's metrics in a text. Recorded series have a colon before this name.
fn named(text: &str) -> Vec<Named> {
    let mut named = Vec::new();
    let is_word = |char: char| char.is_alphanumeric() || char == '_' || char == ':';
    for start in ["etcd_relay_", "process_"] {
        for (at, _) in text.match_indices(start) {
            if text[..at].chars().next_back().is_some_and(|before| is_word(before) || before == '/') {
                continue;
            }
            let end = text[at..].find(|char| !is_word(char)).map_or(text.len(), |length| at + length);
            let metric = text[at..end].to_owned();
            // `etcd_relay_…` and similar names stand for several metrics.
            if metric.ends_with('_') {
                continue;
            }
            named.push(Named { metric, labels: matchers(&text[end..]) });
        }
    }
    named
}

/// The matchers of `{a="b",c=~"d|e"}` at the beginning of a text.
fn matchers(text: &str) -> Vec<(String, Vec<String>)> {
    let Some((inside, _)) = text.strip_prefix('{').and_then(|text| text.split_once('}')) else { return Vec::new() };
    let mut parts = inside.split('"');
    let mut found = Vec::new();
    while let (Some(label), Some(values)) = (parts.next(), parts.next()) {
        let label = label.trim_matches([',', ' ', '=', '~', '!']);
        found.push((label.to_owned(), values.split('|').map(ToOwned::to_owned).collect()));
    }
    found
}

#[test]
fn names_are_found_with_what_is_asked_of_their_labels() {
    let text =
        r#"sum(rate(etcd_relay_a_total{x="1",job=~"$job",y!~"2|3"}[5m])) / instance:etcd_relay_b:rate > etcd_relay_c"#;
    let values = |label: &str, values: &[&str]| (label.to_owned(), values.iter().map(ToString::to_string).collect());
    let labels = vec![values("x", &["1"]), values("job", &["$job"]), values("y", &["2", "3"])];
    let expected = [
        Named { metric: "etcd_relay_a_total".to_owned(), labels },
        Named { metric: "etcd_relay_c".to_owned(), labels: Vec::new() },
    ];
    assert_eq!(named(text), expected);
}
