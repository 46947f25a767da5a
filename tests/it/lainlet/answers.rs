//! Each recorded answer of the original, byte for byte, for each peer.
//!
//! Answers over time are in `streams`. All differences are printed together, so that one run shows everything that is
//! left to fix.

use super::{
    Lain,
    client::{Answer, Client},
    data::{self, Change, Expected},
};
use crate::{
    support::{etcd::Etcd, relay::RelayCommand},
    v2::{self, store::Store},
};

/// Characters shown on each side of the first difference between two bodies.
const AROUND: usize = 60;

#[tokio::test]
async fn each_answer_of_the_original_is_given_byte_for_byte() {
    let lain = Lain::over_etcd(&data::small()).await;
    let mut differences = Differences::default();
    let loaded = lain.kv.revision().await;
    differences.compare("small", "as loaded", |peer| lain.peer(peer), Some(loaded)).await;
    differences.compare("small", "as loaded, over HTTP/2", |peer| lain.peer(peer).http2(), Some(loaded)).await;

    let mut revision = loaded;
    for change in data::changes() {
        revision = lain.apply(&change).await;
    }
    lain.reached(revision).await;
    differences.compare("final", "after the changes", |peer| lain.peer(peer), None).await;

    let etcd = lain.etcd.as_ref().expect("an etcd").endpoint();
    let afresh = RelayCommand::serve(&[etcd]).arg(super::NODE[0]).arg(super::NODE[1]).prefix("/lain/").start().await;
    let afresh_at = |peer: &str| lain.peer(peer).of(afresh.http_addr());
    differences.compare("final", "loaded afresh, of one feed", afresh_at, Some(revision)).await;
    differences.assert_none();
    lain.relay.assert_no_panic();
    afresh.assert_no_panic();
}

#[tokio::test]
async fn each_answer_of_the_original_is_given_over_the_v2_store_that_it_read() {
    let etcd = Etcd::start_with(&[v2::ENABLE]).await;
    let store = Store::at(&etcd.addr());
    let mut loaded = 0;
    for entry in data::small() {
        loaded = store.set(&entry.key, &entry.value).await;
    }
    let relay = RelayCommand::over_v2(&[etcd.endpoint()]).arg(super::NODE[0]).arg(super::NODE[1]).start().await;
    let local = |peer: &str| Client::new(relay.http_addr(), peer.parse().expect("an address"));
    let mut differences = Differences::default();
    let reach = async |revision: i64| {
        for view in ["configwatcher", "nodes", "depends", "streamrouter/ports"] {
            let uri = format!("/v2/{view}?min_revision={revision}");
            let answer = local("127.0.0.1").get(&uri).await;
            assert!(answer.status != 503 && answer.revision() >= Some(revision), "{uri}: {}", answer.text());
        }
    };
    reach(loaded).await;
    differences.compare("small", "over v2", local, None).await;
    let mut changed = loaded;
    for change in data::changes() {
        changed = match change {
            Change::Put { key, value } => store.set(&key, &value).await,
            Change::Delete { key } => store.delete(&key).await,
        };
    }
    reach(changed).await;
    differences.compare("final", "over v2, after the changes", local, None).await;
    differences.assert_none();
    relay.assert_no_panic();
}

#[derive(Debug, Default)]
struct Differences {
    asked: usize,
    found: Vec<String>,
}

impl Differences {
    /// Requests each answer of this state. A view's answer must name `revision`, if that is known.
    async fn compare(&mut self, state: &str, how: &str, client_at: impl Fn(&str) -> Client, revision: Option<i64>) {
        for expected in data::expected().iter().filter(|expected| expected.state == state) {
            let answer = client_at(&expected.peer).get(&expected.uri).await;
            self.asked += 1;
            for difference in differences(expected, &answer, revision) {
                self.found.push(format!("{how}, {} asks {}: {difference}", expected.peer, expected.uri));
            }
        }
    }

    fn assert_none(&self) {
        assert!(self.asked >= 137, "only {} answers were asked for", self.asked);
        let found = self.found.len();
        assert!(found == 0, "{found} differences in {} answers:\n{}", self.asked, self.found.join("\n"));
    }
}

fn differences(expected: &Expected, answer: &Answer, revision: Option<i64>) -> Vec<String> {
    let mut found = Vec::new();
    if answer.status != expected.status {
        found.push(format!("status {}, not {}; body {:.200?}", answer.status, expected.status, answer.text()));
    } else if answer.text() != expected.body {
        found.push(first_difference(&expected.body, answer.text()));
    }
    if expected.status != 404 && answer.header("content-type") != Some("text/plain; charset=utf-8") {
        found.push(format!("Content-Type {:?}", answer.header("content-type")));
    }
    let names_its_revision = expected.status == 200 && expected.uri.starts_with("/v2/");
    if let Some(revision) = revision.filter(|_| names_its_revision)
        && answer.revision() != Some(revision)
    {
        found.push(format!("X-Etcd-Index {:?}, not {revision}", answer.header("x-etcd-index")));
    }
    found
}

/// The first difference of two texts, with the text around it.
fn first_difference(expected: &str, actual: &str) -> String {
    let (expected, actual): (Vec<char>, Vec<char>) = (expected.chars().collect(), actual.chars().collect());
    let at = expected.iter().zip(&actual).take_while(|(expected, actual)| expected == actual).count();
    let around = |text: &[char]| -> String {
        text[at.saturating_sub(AROUND).min(text.len())..(at + AROUND).min(text.len())].iter().collect()
    };
    format!(
        "bodies of {} and {} characters part at {at}:\n    expected …{:?}…\n    got      …{:?}…",
        expected.len(),
        actual.len(),
        around(&expected),
        around(&actual)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_with_what_is_around_it() {
        let text = first_difference(r#"{"a":"b"}"#, r#"{"a":"c"}"#);
        assert!(text.contains("part at 6"), "{text}");
        assert!(first_difference("[]", "[").contains("part at 1"));
    }
}
