//! Reads selected series of a server's Prometheus metrics before and after a run, and computes the difference.
//!
//! Always holds: of a histogram, only what its buckets show is reported: an upper bound of the longest value.

use std::{collections::BTreeMap, str::FromStr};

use serde_json::{Map, Value, json};

use super::{BenchError, Endpoint, http, report::rounded, runtime};

/// Metrics to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scrape {
    /// The server's name in the report.
    pub name: String,
    /// The server that has them.
    pub endpoint: Endpoint,
    /// The path of the metrics.
    pub path: String,
    /// Names of the metrics.
    pub metrics: Vec<String>,
}

/// The URL of metrics with a name: `relay=http://127.0.0.1:9001/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsUrl {
    name: String,
    endpoint: Endpoint,
    path: String,
}

/// The metrics of a server at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Samples {
    /// By the name of a series including its labels.
    values: BTreeMap<String, f64>,
    /// Buckets of histograms, by the histogram's name and labels, each with its upper bound. They are cumulative, as in
    /// the metrics.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
}

impl MetricsUrl {
    /// Selects the metrics to read there.
    #[must_use]
    pub fn of(self, metrics: &[String]) -> Scrape {
        Scrape { name: self.name, endpoint: self.endpoint, path: self.path, metrics: metrics.to_vec() }
    }
}

impl FromStr for MetricsUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, url) = match text.split_once('=') {
            Some((name, url)) if !name.contains(['/', ':']) => (name, url),
            _ => (text, text),
        };
        if url.starts_with("https://") {
            return Err("metrics cannot be read over TLS; use an http:// address (--listen-metrics)".to_owned());
        }
        let rest = url.strip_prefix("http://").unwrap_or(url);
        let (addr, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/metrics" } else { path };
        Ok(Self { name: name.to_owned(), endpoint: addr.parse()?, path: path.to_owned() })
    }
}

/// Reads all of them.
pub(super) fn all(scrapes: &[Scrape]) -> Result<Vec<Samples>, BenchError> {
    scrapes.iter().map(Scrape::read).collect()
}

/// Reads all of them again and returns the differences by server.
pub(super) fn since(scrapes: &[Scrape], then: Vec<Samples>) -> Result<Map<String, Value>, BenchError> {
    let mut told = Map::new();
    for (scrape, then) in scrapes.iter().zip(then) {
        told.insert(scrape.name.clone(), Value::Object(scrape.read()?.since(&then)));
    }
    Ok(told)
}

impl Scrape {
    fn read(&self) -> Result<Samples, BenchError> {
        let refused = |why: String| BenchError::Metrics { url: format!("{}{}", self.endpoint, self.path), why };
        let get = http::get(self.endpoint.addr(), &self.path);
        let answer = runtime()?.block_on(get).map_err(|error| refused(error.to_string()))?;
        if answer.status != 200 {
            return Err(refused(format!("status {}", answer.status)));
        }
        let samples = Samples::parse(&String::from_utf8_lossy(&answer.body), &self.metrics);
        // A misspelt name would look like a server in which nothing happens.
        let told = |name: &String| samples.values.keys().chain(samples.buckets.keys()).any(|told| is_of(told, name));
        match self.metrics.iter().find(|name| !told(name)) {
            Some(unknown) => Err(refused(format!("the metric {unknown} does not exist"))),
            None => Ok(samples),
        }
    }
}

impl Samples {
    fn parse(text: &str, names: &[String]) -> Self {
        let mut samples = Self::default();
        for line in text.lines().filter(|line| names.iter().any(|name| line.starts_with(name.as_str()))) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = series.split_at(series.find('{').unwrap_or(series.len()));
            if !names.iter().any(|wanted| is_of(name, wanted)) {
                continue;
            }
            let Some(histogram) = name.strip_suffix("_bucket") else {
                samples.values.insert(series.to_owned(), value);
                continue;
            };
            let labels = labels.trim_start_matches('{').trim_end_matches('}');
            let (bound, others): (Vec<_>, Vec<_>) = labels.split(',').partition(|label| label.starts_with("le="));
            let bound = bound.first().and_then(|label| label.strip_prefix("le=")?.trim_matches('"').parse().ok());
            let others = if others.is_empty() { String::new() } else { format!("{{{}}}", others.join(",")) };
            if let Some(bound) = bound {
                samples.buckets.entry(format!("{histogram}{others}")).or_default().push((bound, value));
            }
        }
        samples
    }

    /// The difference to `then`: for a histogram the number of values, their mean, and upper bounds of 99 % and of all
    /// of them; for other metrics the difference.
    fn since(&self, then: &Self) -> Map<String, Value> {
        let before = |series: &str| then.values.get(series).copied().unwrap_or(0.0);
        let mut told = Map::new();
        for (histogram, buckets) in &self.buckets {
            let old = then.buckets.get(histogram).map_or(&[][..], |old| old);
            let counts: Vec<(f64, f64)> = buckets
                .iter()
                .enumerate()
                .map(|(at, (bound, count))| (*bound, count - old.get(at).map_or(0.0, |old| old.1)))
                .collect();
            let all = counts.last().map_or(0.0, |(_, count)| *count);
            let below = |share: f64| counts.iter().find(|(_, count)| *count >= share * all).map(|(bound, _)| *bound);
            let (name, labels) = histogram.split_at(histogram.find('{').unwrap_or(histogram.len()));
            let sum = format!("{name}_sum{labels}");
            let sum = self.values.get(&sum).copied().unwrap_or(0.0) - before(&sum);
            // Seconds are shown as milliseconds, like all times in a report.
            let (unit, scale) = if name.ends_with("_seconds") { ("_ms", 1e3) } else { ("", 1.0) };
            let figure =
                |value: Option<f64>| value.filter(|_| all > 0.0).map_or(Value::Null, |value| rounded(scale * value));
            told.insert(
                histogram.clone(),
                json!({
                    "count": all,
                    format!("mean{unit}"): figure(Some(sum / all.max(1.0))),
                    format!("99_at_most{unit}"): figure(below(0.99)),
                    format!("max_at_most{unit}"): figure(below(1.0)),
                }),
            );
        }
        let part = |series: &str| {
            let (name, labels) = series.split_at(series.find('{').unwrap_or(series.len()));
            let of = name.strip_suffix("_sum").or_else(|| name.strip_suffix("_count"));
            of.is_some_and(|of| self.buckets.contains_key(&format!("{of}{labels}")))
        };
        for (series, value) in self.values.iter().filter(|(series, _)| !part(series)) {
            told.insert(series.clone(), rounded(value - before(series)));
        }
        told
    }
}

/// Whether a series belongs to this metric.
fn is_of(series: &str, metric: &str) -> bool {
    let name = series.split('{').next().unwrap_or_default();
    let rest = name.strip_prefix(metric);
    rest.is_some_and(|rest| matches!(rest, "" | "_bucket" | "_sum" | "_count"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# TYPE a_seconds histogram\n\
        a_seconds_bucket{part=\"x\",le=\"0.001\"} 10\na_seconds_bucket{part=\"x\",le=\"0.005\"} 11\n\
        a_seconds_bucket{part=\"x\",le=\"+Inf\"} 12\na_seconds_sum{part=\"x\"} 1\na_seconds_count{part=\"x\"} 12\n\
        b_total 5\nbad_total 1\n";
    const AFTER: &str = "a_seconds_bucket{part=\"x\",le=\"0.001\"} 110\na_seconds_bucket{part=\"x\",le=\"0.005\"} 112\n\
        a_seconds_bucket{part=\"x\",le=\"+Inf\"} 113\na_seconds_sum{part=\"x\"} 1.202\na_seconds_count{part=\"x\"} 113\n\
        b_total 8\nbad_total 1\n";

    fn samples(text: &str) -> Samples {
        Samples::parse(text, &["a_seconds".to_owned(), "b_total".to_owned()])
    }

    #[test]
    fn the_difference_is_told() {
        let told = samples(AFTER).since(&samples(BEFORE));
        let expected = json!({
            "a_seconds{part=\"x\"}": { "count": 101.0, "mean_ms": 2.0, "99_at_most_ms": 1.0, "max_at_most_ms": 5.0 },
            "b_total": 3.0,
        });
        assert_eq!(Value::Object(told), expected);
        let nothing = samples(AFTER).since(&samples(AFTER));
        assert_eq!(nothing["a_seconds{part=\"x\"}"]["max_at_most_ms"], Value::Null);
    }

    #[test]
    fn what_is_beyond_all_buckets_has_no_bound() {
        let longer =
            AFTER.replace("+Inf\"} 113", "+Inf\"} 114").replace("count{part=\"x\"} 113", "count{part=\"x\"} 114");
        let told = samples(&longer).since(&samples(BEFORE));
        assert_eq!(told["a_seconds{part=\"x\"}"]["max_at_most_ms"], json!("∞"));
    }

    #[test]
    fn urls_have_names() {
        let url = |text: &str| text.parse::<MetricsUrl>().map(|url| (url.name, url.endpoint.to_string(), url.path));
        let named = |name: &str, path: &str| Ok((name.to_owned(), "http://a:1".to_owned(), path.to_owned()));
        assert_eq!(url("relay=http://a:1/metrics"), named("relay", "/metrics"));
        assert_eq!(url("relay=a:1"), named("relay", "/metrics"));
        assert_eq!(url("http://a:1/m?x=y"), named("http://a:1/m?x=y", "/m?x=y"));
        url("relay=https://a:1/metrics").expect_err("TLS");
        url("relay").expect_err("no port");
    }
}
