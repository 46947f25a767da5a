//! [`Recording`]: what a relay's `/metrics` returned over time, and which alerts fire with it.
//!
//! Not here: the trouble itself. Each sample counts as one scrape of Prometheus, 15 s after the previous one. So
//! minutes of trouble are recorded in seconds, and a relay seems to need sixty times as long to recover as it does.
//! Always holds: only series that the rules name are kept; Unix times are converted to times since the start of the
//! recording, where promtool's own clock starts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    time::{Duration, SystemTime},
};

use super::{RULES, promtool, read, root, run};
use crate::support::http;

/// Time between two samples.
const PACE: Duration = Duration::from_millis(250);
/// Metrics in seconds since 1970.
const TIMES: [&str; 2] = ["etcd_relay_tls_certificate_not_after_seconds", "process_start_time_seconds"];
/// This machine may have too little CPU for its tests, which is not the relay's fault.
const OF_THE_MACHINE: &str = "EtcdRelayOverloaded";

/// See the module.
#[derive(Debug)]
pub(super) struct Recording {
    rules: String,
    begun: f64,
    /// Each sample: all series with their values, or nothing if the relay did not answer.
    looks: Vec<Option<BTreeMap<String, f64>>>,
}

impl Recording {
    pub(super) fn new() -> Self {
        let begun = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time since 1970").as_secs_f64();
        Self { rules: read(RULES), begun, looks: Vec::new() }
    }

    /// Samples the metrics at `addr` this number of times.
    pub(super) async fn look(&mut self, addr: &str, times: usize) {
        let mut ticks = tokio::time::interval(PACE);
        for _ in 0..times {
            ticks.tick().await;
            let text = http::get(addr, "/metrics").await.ok().map(|answer| answer.body);
            self.looks.push(text.map(|text| self.kept(&text)));
        }
    }

    /// Fails unless exactly these alerts, with their severity, fired at some time.
    #[track_caller]
    pub(super) fn fired(&self, expected: &[(&str, &str)]) {
        self.fired_on_each(expected, 1);
    }

    /// The same, but each alert fires for this number of series, such as two certificates.
    #[track_caller]
    pub(super) fn fired_on_each(&self, expected: &[(&str, &str)], series: usize) {
        let Some(promtool) = promtool() else { return };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("recorded.yaml");
        fs::write(&file, self.as_test(expected, series)).expect("written");
        run(&promtool, &["test", "rules"], &file);
    }

    fn kept(&self, text: &str) -> BTreeMap<String, f64> {
        let mut kept = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or(series);
            if let Ok(value) = value.parse::<f64>()
                && self.rules.contains(name)
            {
                let is_time = TIMES.contains(&name) && value > 0.0;
                kept.insert(series.to_owned(), if is_time { value - self.begun } else { value });
            }
        }
        kept
    }

    /// The samples as input of `promtool test rules`.
    fn as_test(&self, expected: &[(&str, &str)], times: usize) -> String {
        let mut test = format!(
            "rule_files:\n  - {}\nevaluation_interval: 15s\ntests:\n  - interval: 15s\n    input_series:\n",
            root().join(RULES).display()
        );
        let series: BTreeSet<&String> = self.looks.iter().flatten().flat_map(BTreeMap::keys).collect();
        for one in series {
            let (name, labels) = one.split_once('{').unwrap_or((one, "}"));
            let comma = if labels == "}" { "" } else { "," };
            let target = format!(r#"{name}{{job="etcd-relay",instance="relay:9001"{comma}{labels}"#);
            let told = self.looks.iter().map(|look| look.as_ref().and_then(|look| look.get(one)));
            input(&mut test, &target, told.map(|value| value.map_or_else(|| "_".to_owned(), f64::to_string)));
        }
        let up = self.looks.iter().map(|look| if look.is_some() { "1" } else { "0" }.to_owned());
        input(&mut test, r#"up{job="etcd-relay",instance="relay:9001"}"#, up);
        let end = self.looks.len() * 15;
        let ever = format!(
            r#"count by (alertname, severity) (max_over_time(ALERTS{{alertstate="firing",alertname!="{OF_THE_MACHINE}"}}[1d]))"#
        );
        write!(test, "    promql_expr_test:\n      - expr: '{ever}'\n        eval_time: {end}s\n        exp_samples:")
            .expect("text");
        for (alert, severity) in expected {
            let labels = format!(r#"{{alertname="{alert}",severity="{severity}"}}"#);
            write!(test, "\n          - labels: '{labels}'\n            value: {times}").expect("text");
        }
        test.push_str(if expected.is_empty() { " []\n" } else { "\n" });
        test
    }
}

fn input(test: &mut String, series: &str, values: impl Iterator<Item = String>) {
    let values: Vec<String> = values.collect();
    let series = series.replace('\'', "''");
    writeln!(test, "      - series: '{series}'\n        values: '{}'", values.join(" ")).expect("text");
}
