//! Checks a watch against etcd's documented guarantees: each rule applies to everything that the watch received.
//!
//! The rules have the names of etcd's robustness tests (Filter, Bookmarkable, Ordered, Unique, Atomic, Reliable,
//! Resumable, IsCreate, PrevKV), but are written from scratch. Three more are added: Live, because a feed that stops
//! silently satisfies all others, and Header and Canceled, because the other fields must be correct as well. The truth
//! comes from `replay`. Always holds: no violations means that each rule was applied, not that there was anything to
//! check; callers that expect events state up to which revision.

use std::{collections::HashSet, fmt};

use etcd_relay::pb::{
    etcdserverpb::{WatchCreateRequest, WatchResponse, watch_create_request::FilterType},
    mvccpb::{Event, event::EventType},
};

use super::{
    client::{Recorded, event_revision, header_revision, is_progress},
    replay::Replay,
};

#[cfg(test)]
mod tests;

/// A watch: its request and all of its responses, with fragments joined.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The request.
    pub request: WatchCreateRequest,
    /// The responses, beginning with the `created` one.
    pub responses: Vec<WatchResponse>,
}

/// What the test knows in addition to the replay.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    /// Every event up to this revision must have come; usually the end of the test.
    pub complete_to: Option<i64>,
    /// Nothing was compacted, so every existing previous value must be sent.
    pub prev_kv_known: bool,
}

/// A violated rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// The details.
    pub detail: String,
}

/// The guarantees of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Only events that were requested.
    Filter,
    /// Progress covers everything before it and nothing after it.
    Bookmarkable,
    /// Revisions never decrease.
    Ordered,
    /// No event twice.
    Unique,
    /// A revision is not split over several responses.
    Atomic,
    /// No event is missing between the first and the last.
    Reliable,
    /// The first event is the first one at or after the requested revision.
    Resumable,
    /// A put is reported as a creation exactly if the key did not exist.
    IsCreate,
    /// The previous value is correct.
    PrevKv,
    /// The watch got as far as the test.
    Live,
    /// Headers name one cluster, and are never behind their events.
    Header,
    /// A watch is canceled because of compaction only if the revisions that it needs are gone.
    Canceled,
}

impl Operation {
    /// Divides the responses of a stream among its watches, in the order of their creation.
    ///
    /// A refused create gives an operation with that single response. Stream-wide progress counts for each existing
    /// watch.
    pub fn of_stream(creates: &[WatchCreateRequest], record: &[Recorded]) -> Vec<Self> {
        let mut operations: Vec<(i64, Self)> = Vec::new();
        for recorded in record {
            let response = &recorded.response;
            if response.created {
                let request = creates.get(operations.len()).expect("no more created answers than creates").clone();
                // A later watch may reuse the id of a canceled one; see the reverse search below.
                operations.push((response.watch_id, Self { request, responses: vec![response.clone()] }));
            } else if response.watch_id == -1 {
                operations.iter_mut().for_each(|(_, operation)| operation.responses.push(response.clone()));
            } else {
                let operation = operations.iter_mut().rev().find(|(id, _)| *id == response.watch_id);
                let (_, operation) = operation.unwrap_or_else(|| panic!("a response for no watch: {response:?}"));
                operation.receive(response);
            }
        }
        operations.into_iter().map(|(_, operation)| operation).collect()
    }

    fn receive(&mut self, response: &WatchResponse) {
        match self.responses.last_mut() {
            Some(last) if last.fragment => {
                last.events.extend(response.events.iter().cloned());
                last.fragment = response.fragment;
            }
            _ => self.responses.push(response.clone()),
        }
    }

    fn events(&self) -> impl Iterator<Item = &Event> {
        self.responses.iter().flat_map(|response| &response.events)
    }

    fn wants(&self, event: &Event) -> bool {
        let (WatchCreateRequest { key, range_end, .. }, kv) = (&self.request, event.kv.as_ref().expect("a key"));
        let within = match &range_end[..] {
            [] if key.is_empty() => kv.key[..] == *b"\0",
            [] => kv.key == key,
            [0] => kv.key >= key,
            end => kv.key >= key && &kv.key[..] < end,
        };
        let unwanted = match event.r#type() {
            EventType::Put => FilterType::Noput,
            EventType::Delete => FilterType::Nodelete,
        };
        within && !self.request.filters().any(|filter| filter == unwanted)
    }

    /// The first revision that the watch must send; `None` if it was never created.
    fn first_owed(&self) -> Option<i64> {
        let created = self.responses.first().filter(|response| response.created && !response.canceled)?;
        if self.request.start_revision != 0 {
            return Some(self.request.start_revision);
        }
        // The header of `created` may be ahead of the registration, but never behind it.
        let after_created = header_revision(created) + 1;
        Some(self.events().next().map_or(after_created, |event| event_revision(event).min(after_created)))
    }

    /// The last revision up to which the watch claims to be complete.
    pub fn last_told(&self) -> i64 {
        self.responses
            .iter()
            .map(|response| if is_progress(response) { header_revision(response) } else { last_revision(response) })
            .max()
            .unwrap_or(0)
    }
}

/// Applies every rule.
pub fn validate(operation: &Operation, replay: &Replay, expected: Expected) -> Vec<Violation> {
    let checks: [(Rule, Result<(), String>); 12] = [
        (Rule::Filter, filter(operation)),
        (Rule::Bookmarkable, bookmarkable(operation)),
        (Rule::Ordered, ordered(operation)),
        (Rule::Unique, unique(operation)),
        (Rule::Atomic, atomic(operation)),
        (Rule::Reliable, reliable(operation, replay)),
        (Rule::Resumable, resumable(operation, replay)),
        (Rule::IsCreate, is_create(operation, replay)),
        (Rule::PrevKv, prev_kv(operation, replay, expected.prev_kv_known)),
        (Rule::Live, live(operation, replay, expected.complete_to)),
        (Rule::Header, header(operation)),
        (Rule::Canceled, canceled(operation)),
    ];
    checks.into_iter().filter_map(|(rule, result)| Some(Violation { rule, detail: result.err()? })).collect()
}

/// Applies every rule to every watch of a stream, and fails with all violations.
pub fn assert_valid(creates: &[WatchCreateRequest], record: &[Recorded], replay: &Replay, expected: Expected) {
    let operations = Operation::of_stream(creates, record);
    assert_eq!(operations.len(), creates.len(), "each create is answered");
    let broken: Vec<_> = operations
        .iter()
        .flat_map(|operation| {
            validate(operation, replay, expected).into_iter().map(move |violation| (violation, &operation.request))
        })
        .map(|(violation, request)| format!("{violation} (watch {request:?})"))
        .collect();
    assert!(broken.is_empty(), "{} violations:\n{}", broken.len(), broken.join("\n"));
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.rule, self.detail)
    }
}

fn filter(operation: &Operation) -> Result<(), String> {
    match operation.events().find(|event| !operation.wants(event)) {
        Some(event) => Err(format!("not asked for: {event:?}")),
        None => Ok(()),
    }
}

fn bookmarkable(operation: &Operation) -> Result<(), String> {
    let (mut last_progress, mut last_event) = (0, 0);
    for response in &operation.responses {
        for revision in response.events.iter().map(event_revision) {
            if revision <= last_progress {
                return Err(format!("event of revision {revision} after progress {last_progress}"));
            }
            last_event = last_event.max(revision);
        }
        if is_progress(response) {
            let progress = header_revision(response);
            if progress < last_progress {
                return Err(format!("progress {progress} after progress {last_progress}"));
            }
            if progress < last_event {
                return Err(format!("progress {progress} after event of revision {last_event}"));
            }
            if progress < operation.request.start_revision {
                return Err(format!("progress {progress} before the start {}", operation.request.start_revision));
            }
            last_progress = progress;
        }
    }
    Ok(())
}

fn ordered(operation: &Operation) -> Result<(), String> {
    let mut last = 1;
    for revision in operation.events().map(event_revision) {
        if revision < last {
            return Err(format!("revision {revision} after {last}"));
        }
        last = revision;
    }
    Ok(())
}

fn unique(operation: &Operation) -> Result<(), String> {
    let mut seen = HashSet::new();
    match operation.events().find(|event| !seen.insert((event_revision(event), key_of(event)))) {
        Some(event) => Err(format!("twice: revision {} of {:?}", event_revision(event), key_of(event))),
        None => Ok(()),
    }
}

fn atomic(operation: &Operation) -> Result<(), String> {
    let mut last = 0;
    for response in operation.responses.iter().filter(|response| !response.events.is_empty()) {
        if response.events.first().map(event_revision) == Some(last) {
            return Err(format!("revision {last} split over responses"));
        }
        last = last_revision(response);
    }
    Ok(())
}

fn reliable(operation: &Operation, replay: &Replay) -> Result<(), String> {
    let Some(first) = operation.first_owed() else { return Ok(()) };
    same_events(operation, replay, first, operation.last_told())
}

fn live(operation: &Operation, replay: &Replay, complete_to: Option<i64>) -> Result<(), String> {
    let (Some(first), Some(last)) = (operation.first_owed(), complete_to) else { return Ok(()) };
    if operation.responses.iter().any(|response| response.canceled) {
        return Ok(());
    }
    same_events(operation, replay, first, last)
}

fn resumable(operation: &Operation, replay: &Replay) -> Result<(), String> {
    let start = operation.request.start_revision;
    let (true, Some(first)) = (start != 0, operation.events().next()) else { return Ok(()) };
    let owed = replay.events_from(start).iter().find(|event| operation.wants(event));
    match owed {
        Some(owed) if place(owed) == place(first) => Ok(()),
        owed => Err(format!("from {start} the first event is {:?}, not {:?}", owed.map(place), place(first))),
    }
}

fn is_create(operation: &Operation, replay: &Replay) -> Result<(), String> {
    for event in operation.events().filter(|event| event.r#type() == EventType::Put) {
        let kv = event.kv.as_ref().expect("a key");
        if !replay.knows_before(&kv.key, kv.mod_revision) && kv.create_revision != kv.mod_revision {
            // The key existed before the replay begins.
            continue;
        }
        let (told, existed) =
            (kv.create_revision == kv.mod_revision, replay.before(&kv.key, kv.mod_revision).is_some());
        if told == existed {
            return Err(format!("told as {}: {:?}", if told { "creation" } else { "change" }, place(event)));
        }
    }
    Ok(())
}

fn prev_kv(operation: &Operation, replay: &Replay, known: bool) -> Result<(), String> {
    for event in operation.events() {
        let before = replay.before(key_of(event), event_revision(event));
        match (&event.prev_kv, before) {
            (Some(_), _) if !operation.request.prev_kv => return Err(format!("not asked for: {:?}", place(event))),
            (Some(told), Some(before)) if told != before => return Err(format!("{told:?} instead of {before:?}")),
            (Some(told), None) if replay.knows_before(key_of(event), event_revision(event)) => {
                return Err(format!("{told:?} where there was nothing"));
            }
            (None, Some(_)) if operation.request.prev_kv && known => {
                return Err(format!("missing: {:?}", place(event)));
            }
            _ => {}
        }
    }
    Ok(())
}

fn header(operation: &Operation) -> Result<(), String> {
    let mut cluster = None;
    for response in &operation.responses {
        let Some(header) = &response.header else { return Err(format!("none: {response:?}")) };
        if *cluster.get_or_insert(header.cluster_id) != header.cluster_id || header.cluster_id == 0 {
            return Err(format!("cluster {} after {cluster:?}", header.cluster_id));
        }
        if header.revision < last_revision(response) {
            return Err(format!("revision {} over an event of {}", header.revision, last_revision(response)));
        }
    }
    Ok(())
}

fn canceled(operation: &Operation) -> Result<(), String> {
    let Some(response) = operation.responses.iter().find(|response| response.compact_revision != 0) else {
        return Ok(());
    };
    let told = operation.last_told();
    let needs = if told == 0 { operation.first_owed().unwrap_or(0) } else { told + 1 };
    if !response.canceled || needs >= response.compact_revision {
        return Err(format!("compacted at {} while it needed {needs} on", response.compact_revision));
    }
    Ok(())
}

/// Compares the received events with those of the replay from `first` to `last`.
fn same_events(operation: &Operation, replay: &Replay, first: i64, last: i64) -> Result<(), String> {
    let within = |event: &&Event| (first..=last).contains(&event_revision(event));
    let mut owed = replay.events_from(first).iter().take_while(within).filter(|event| operation.wants(event));
    let mut told = operation.events().filter(within);
    let mut same = 0;
    loop {
        match (owed.next(), told.next()) {
            (None, None) => return Ok(()),
            (Some(owed), Some(told)) if owed.r#type == told.r#type && owed.kv == told.kv => same += 1,
            (owed, told) => {
                let (owed, told) = (owed.map(place), told.map(place));
                return Err(format!("of {first}..={last}, after {same} right events, {told:?} instead of {owed:?}"));
            }
        }
    }
}

fn place(event: &Event) -> (i64, &[u8]) {
    (event_revision(event), key_of(event))
}

fn key_of(event: &Event) -> &[u8] {
    event.kv.as_ref().map_or(&[], |kv| &kv.key)
}

fn last_revision(response: &WatchResponse) -> i64 {
    response.events.last().map_or(0, event_revision)
}
