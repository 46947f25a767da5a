//! Filters, previous values and fragments.

use etcd_relay::pb::{
    etcdserverpb::{DeleteRangeRequest, WatchCreateRequest, watch_create_request::FilterType},
    mvccpb::event::EventType,
};

use crate::support::{
    client::{self, revisions},
    kv::{self, op_delete, op_put},
    target::Target,
};

pub async fn noput_leaves_puts_out(target: &Target) {
    filtered(target, &[FilterType::Noput], &[EventType::Delete, EventType::Delete]).await;
}

pub async fn nodelete_leaves_deletes_out(target: &Target) {
    filtered(target, &[FilterType::Nodelete], &[EventType::Put, EventType::Put, EventType::Put]).await;
}

pub async fn both_filters_leave_nothing(target: &Target) {
    filtered(target, &[FilterType::Noput, FilterType::Nodelete], &[]).await;
}

pub async fn prev_kv_of_changes_and_deletes(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    stream.created(WatchCreateRequest { prev_kv: true, ..client::prefix(&ns) }).await;
    let key = format!("{ns}a");
    kv.put(&key, "1").await;
    assert!(stream.next().await.events[0].prev_kv.is_none(), "a creation replaces nothing");
    let first = kv.get(&key).await;
    kv.put(&key, "2").await;
    assert_eq!(stream.next().await.events[0].prev_kv, first);
    let second = kv.get(&key).await;
    kv.delete(&key).await;
    let deleted = stream.next().await.events.remove(0);
    assert_eq!((deleted.r#type(), deleted.prev_kv), (EventType::Delete, second));
    kv.put(&key, "3").await;
    assert!(stream.next().await.events[0].prev_kv.is_none(), "what was deleted before is not replaced");
    let third = kv.get(&key).await;
    kv.txn(vec![op_put(format!("{ns}b"), "x"), op_delete(&key)]).await;
    let events = stream.next().await.events;
    assert_eq!((events[0].prev_kv.clone(), events[1].prev_kv.clone()), (None, third));
}

pub async fn prev_kv_only_for_who_asked(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    kv.put(format!("{ns}a"), "1").await;
    stream.created(client::prefix(&ns)).await;
    stream.created(WatchCreateRequest { prev_kv: true, ..client::prefix(&ns) }).await;
    kv.put(format!("{ns}a"), "2").await;
    for _ in 0..2 {
        let response = stream.next().await;
        assert_eq!(response.events[0].prev_kv.is_some(), response.watch_id == 1);
    }
}

pub async fn prev_kv_within_a_replay(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let key = format!("{ns}a");
    let mut written = Vec::new();
    for round in 0..5 {
        written.push(kv.put(&key, format!("{round}")).await);
    }
    let deleted = kv.delete_request(DeleteRangeRequest { key: kv::bytes(&key), ..Default::default() }).await;
    written.push(deleted.header.expect("a header").revision);
    let request = WatchCreateRequest { prev_kv: true, start_revision: written[0], ..client::prefix(&ns) };
    stream.created(request).await;
    let mut events = Vec::new();
    while events.len() < 6 {
        events.extend(stream.next().await.events);
    }
    assert!(events[0].prev_kv.is_none());
    for (index, event) in events.iter().enumerate().skip(1) {
        let prev = event.prev_kv.as_ref().expect("each change replaced something");
        assert_eq!((prev.mod_revision, &prev.value[..]), (written[index - 1], format!("{}", index - 1).as_bytes()));
    }
}

/// A response is split only if the client requested it, and only from 2 MiB on: the limit of a request plus 512 KiB.
pub async fn large_transactions_are_fragmented_for_who_asked(target: &Target) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let mut plain = target.stream().await;
    plain.created(client::prefix(&ns)).await;
    stream.created(WatchCreateRequest { fragment: true, prev_kv: true, ..client::prefix(&ns) }).await;
    let value = |fill: u8| vec![fill; 200 << 10];
    let revision = kv.txn((0..7).map(|index| op_put(format!("{ns}{index}"), value(b'a'))).collect()).await;
    let response = stream.next().await;
    assert_eq!((response.fragment, revisions(&response)), (false, vec![revision; 7]), "1.4 MiB fit");
    assert_eq!(revisions(&plain.next().await), [revision; 7]);
    let revision = kv.txn((0..7).map(|index| op_put(format!("{ns}{index}"), value(b'b'))).collect()).await;
    let (mut pieces, mut events) = (Vec::new(), Vec::new());
    loop {
        let response = stream.next().await;
        assert_eq!(response.header.as_ref().expect("a header").revision, revision);
        assert_eq!(response.watch_id, 0);
        pieces.push(response.fragment);
        events.extend(response.events);
        if !pieces[pieces.len() - 1] {
            break;
        }
    }
    assert!(pieces.len() > 1, "2.8 MiB with the previous values do not fit");
    let keys: Vec<_> = events.iter().map(|event| event.kv.clone().expect("a key").key).collect();
    assert_eq!(keys, (0..7).map(|index| format!("{ns}{index}")).collect::<Vec<_>>());
    for event in &events {
        assert_eq!(event.kv.as_ref().expect("a key").value, value(b'b'));
        assert_eq!(event.prev_kv.as_ref().expect("asked for").value, value(b'a'));
    }
    assert_eq!(revisions(&plain.next().await), [revision; 7]);
}

async fn filtered(target: &Target, filters: &[FilterType], expected: &[EventType]) {
    let (mut stream, ns, kv) = (target.stream().await, target.namespace(), target.kv().await);
    let first = kv.put(format!("{ns}a"), "1").await;
    kv.delete(format!("{ns}a")).await;
    let request = WatchCreateRequest {
        filters: filters.iter().map(|filter| (*filter).into()).collect(),
        start_revision: first,
        ..client::prefix(&ns)
    };
    stream.created(request).await;
    kv.put(format!("{ns}a"), "2").await;
    kv.txn(vec![op_put(format!("{ns}b"), "3"), op_delete(format!("{ns}a"))]).await;
    let mut told = Vec::new();
    while told.len() < expected.len() {
        let response = stream.next().await;
        assert!(!response.events.is_empty(), "a response without events after filtering is not sent");
        told.extend(response.events.iter().map(etcd_relay::pb::mvccpb::Event::r#type));
    }
    assert_eq!(told, expected);
    stream.expect_silence().await;
}
