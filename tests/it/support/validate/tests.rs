//! Each rule, and no other, must reject a history that violates it; a correct history passes all rules.

use etcd_relay::pb::{
    etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse},
    mvccpb::{Event, KeyValue, event::EventType},
};

use super::{Expected, Operation, Rule, validate};
use crate::support::{client, replay::Replay};

/// Revisions 2 to 6: `a` created, `b` and `a` changed in one revision (3), `a` deleted, `a` created again, `b` changed.
fn history() -> Vec<Event> {
    vec![put("a", 2, 2, 1), put("a", 3, 2, 2), put("b", 3, 3, 1), delete("a", 4), put("a", 5, 5, 1), put("b", 6, 3, 2)]
}

/// A watch of everything from revision 2 with previous values, which received the whole history and then progress 7.
fn truth() -> Operation {
    let request = WatchCreateRequest { start_revision: 2, prev_kv: true, ..client::prefix("") };
    let replay = Replay::from_events(history());
    let with_prev = |mut event: Event| {
        let kv = event.kv.as_ref().unwrap();
        event.prev_kv = replay.before(&kv.key, kv.mod_revision).cloned();
        event
    };
    let mut events: Vec<_> = history().into_iter().map(with_prev).collect();
    let live = events.split_off(4);
    let created = WatchResponse { created: true, ..response(6, vec![]) };
    let mut responses = vec![created, response(6, events)];
    responses.extend(live.into_iter().map(|event| response(event.kv.as_ref().unwrap().mod_revision, vec![event])));
    responses.push(response(7, vec![]));
    Operation { request, responses }
}

fn broken(change: impl FnOnce(&mut Operation)) -> Vec<Rule> {
    let mut operation = truth();
    change(&mut operation);
    let expected = Expected { complete_to: Some(6), prev_kv_known: true };
    validate(&operation, &Replay::from_events(history()), expected)
        .into_iter()
        .map(|violation| violation.rule)
        .collect()
}

#[test]
fn a_true_history_passes() {
    assert_eq!(broken(|_| {}), []);
}

#[test]
fn filter_refuses_an_event_that_was_not_asked_for() {
    assert!(broken(|watch| watch.request.range_end = "b".into()).contains(&Rule::Filter));
    let only_deletes = |watch: &mut Operation| watch.request.filters = vec![0];
    assert!(broken(only_deletes).contains(&Rule::Filter));
}

#[test]
fn bookmarkable_refuses_an_event_that_progress_had_covered() {
    let early = |watch: &mut Operation| watch.responses.insert(2, response(5, vec![]));
    assert_eq!(broken(early), [Rule::Bookmarkable]);
}

#[test]
fn bookmarkable_refuses_progress_that_falls() {
    assert_eq!(broken(|watch| watch.responses.push(response(6, vec![]))), [Rule::Bookmarkable]);
}

#[test]
fn bookmarkable_refuses_progress_behind_the_events() {
    let late = |watch: &mut Operation| watch.responses.insert(4, response(5, vec![]));
    assert_eq!(broken(late), [Rule::Bookmarkable]);
}

#[test]
fn ordered_refuses_a_revision_that_falls() {
    let swapped = |watch: &mut Operation| {
        watch.responses.swap(2, 3);
    };
    assert!(broken(swapped).contains(&Rule::Ordered));
}

#[test]
fn unique_refuses_an_event_that_comes_twice() {
    let twice = |watch: &mut Operation| {
        let event = watch.responses[1].events[3].clone();
        watch.responses[1].events.push(event);
    };
    assert!(broken(twice).contains(&Rule::Unique));
}

#[test]
fn atomic_refuses_a_revision_in_two_responses() {
    let split = |watch: &mut Operation| {
        let rest = watch.responses[1].events.split_off(2);
        watch.responses.insert(2, response(6, rest));
    };
    assert_eq!(broken(split), [Rule::Atomic]);
}

#[test]
fn fragments_of_one_response_are_joined_before_they_are_judged() {
    let mut operation = truth();
    let mut pieces = operation.responses.remove(1);
    let rest = WatchResponse { events: pieces.events.split_off(2), ..pieces.clone() };
    pieces.fragment = true;
    operation.responses.truncate(1);
    operation.receive(&pieces);
    operation.receive(&rest);
    assert_eq!(operation.responses[1], truth().responses[1]);
}

#[test]
fn reliable_refuses_a_gap() {
    let gap = |watch: &mut Operation| {
        watch.responses[1].events.remove(1);
    };
    assert_eq!(broken(gap), [Rule::Reliable, Rule::Live]);
}

#[test]
fn reliable_refuses_a_gap_after_now() {
    let gap = |watch: &mut Operation| {
        watch.request.start_revision = 0;
        watch.responses[0].header.as_mut().unwrap().revision = 4;
        watch.responses.drain(1..3);
    };
    assert_eq!(broken(gap), [Rule::Reliable, Rule::Live]);
}

#[test]
fn resumable_refuses_a_late_first_event() {
    let late = |watch: &mut Operation| {
        watch.responses[1].events.remove(0);
    };
    assert!(broken(late).contains(&Rule::Resumable));
}

#[test]
fn is_create_refuses_a_creation_that_was_a_change_and_the_reverse() {
    let created = |watch: &mut Operation| watch.responses[1].events[1].kv.as_mut().unwrap().create_revision = 3;
    assert!(broken(created).contains(&Rule::IsCreate));
    let changed = |watch: &mut Operation| watch.responses[2].events[0].kv.as_mut().unwrap().create_revision = 2;
    assert!(broken(changed).contains(&Rule::IsCreate));
}

#[test]
fn prev_kv_refuses_another_value_a_missing_one_and_one_that_was_not_asked_for() {
    let other = |watch: &mut Operation| watch.responses[1].events[1].prev_kv.as_mut().unwrap().value = "x".into();
    assert_eq!(broken(other), [Rule::PrevKv]);
    let missing = |watch: &mut Operation| watch.responses[1].events[3].prev_kv = None;
    assert_eq!(broken(missing), [Rule::PrevKv]);
    assert_eq!(broken(|watch| watch.request.prev_kv = false), [Rule::PrevKv]);
    let invented = |watch: &mut Operation| watch.responses[2].events[0].prev_kv = put("a", 3, 2, 2).kv;
    assert_eq!(broken(invented), [Rule::PrevKv]);
}

#[test]
fn live_refuses_a_watch_that_fell_silent() {
    assert_eq!(broken(|watch| watch.responses.truncate(2)), [Rule::Live]);
    assert_eq!(broken(|watch| watch.responses.truncate(1)), [Rule::Live]);
}

#[test]
fn header_refuses_another_cluster_and_a_revision_behind_the_events() {
    let other = |watch: &mut Operation| watch.responses[2].header.as_mut().unwrap().cluster_id = 8;
    assert_eq!(broken(other), [Rule::Header]);
    let behind = |watch: &mut Operation| watch.responses[2].header.as_mut().unwrap().revision = 4;
    assert_eq!(broken(behind), [Rule::Header]);
    assert_eq!(broken(|watch| watch.responses[2].header = None), [Rule::Header]);
}

#[test]
fn canceled_refuses_a_compaction_that_took_nothing_from_the_watch() {
    let cancel = |compact_revision| {
        move |watch: &mut Operation| {
            let canceled = WatchResponse { canceled: true, compact_revision, ..response(0, vec![]) };
            watch.responses.truncate(2);
            watch.responses.push(canceled);
        }
    };
    assert_eq!(broken(cancel(5)), [Rule::Canceled]);
    assert_eq!(broken(cancel(6)), []);
}

fn put(key: &'static str, revision: i64, create_revision: i64, version: i64) -> Event {
    let value = format!("{key}{revision}").into();
    let kv = KeyValue { key: key.into(), value, create_revision, mod_revision: revision, version, lease: 0 };
    Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None }
}

fn delete(key: &'static str, revision: i64) -> Event {
    let kv = KeyValue { key: key.into(), mod_revision: revision, ..Default::default() };
    Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None }
}

fn response(revision: i64, events: Vec<Event>) -> WatchResponse {
    let header = ResponseHeader { cluster_id: 7, member_id: 1, revision, raft_term: 2 };
    WatchResponse { header: Some(header), events, ..Default::default() }
}
