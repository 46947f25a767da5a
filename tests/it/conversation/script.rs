//! The steps of the conversation.

use etcd_relay::pb::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, TxnRequest,
    WatchCreateRequest, watch_create_request::FilterType,
};

use crate::support::{
    client::{key, prefix},
    kv::{op_delete, op_put, put},
};

/// One step. Streams are numbered in the order of opening.
#[derive(Clone, Debug)]
pub enum Say {
    Open,
    Create(usize, WatchCreateRequest),
    Batch(usize, Vec<WatchCreateRequest>),
    Cancel(usize, i64),
    Progress(usize),
    Nothing(usize),
    HalfClose(usize),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Range(RangeRequest),
    Compact(i64),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
}

/// The whole conversation, starting with an empty store (revision 1).
pub fn script() -> Vec<Say> {
    let watch = |id, create: WatchCreateRequest| WatchCreateRequest { watch_id: id, ..create };
    let from = |start_revision, create: WatchCreateRequest| WatchCreateRequest { start_revision, ..create };
    let prev = |create: WatchCreateRequest| WatchCreateRequest { prev_kv: true, ..create };
    let filter =
        |filter: FilterType, create: WatchCreateRequest| WatchCreateRequest { filters: vec![filter.into()], ..create };
    let refused = WatchCreateRequest { range_end: "a".into(), ..key("b") };
    let txn = |success| Say::Txn(TxnRequest { success, ..Default::default() });
    let delete = |key: &str| Say::Delete(DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() });
    let delete_all = |start: &str| {
        let range = prefix(start);
        Say::Delete(DeleteRangeRequest { key: range.key, range_end: range.range_end, prev_kv: true })
    };
    let read =
        |revision| Say::Range(RangeRequest { key: "a".into(), range_end: "z".into(), revision, ..Default::default() });
    vec![
        // An empty store.
        Say::Open,
        Say::Progress(0),
        Say::Create(0, key("a")),
        Say::Progress(0),
        Say::Create(0, prefix("")),
        Say::Nothing(0),
        Say::Create(0, refused.clone()),
        Say::Create(0, watch(1, key("a"))),
        Say::Create(0, watch(7, prev(prefix("a")))),
        read(0),
        // Revisions 2 to 6.
        Say::Put(put("a", "1")),
        Say::Put(put("a", "2")),
        Say::Put(put("ab", "1")),
        txn(vec![op_put("b", "1"), op_delete("ab"), op_put("a", "3")]),
        delete("nothing"),
        delete("a"),
        Say::Progress(0),
        // The past, the present and the future on a second stream.
        Say::Open,
        Say::Create(1, from(1, prefix(""))),
        Say::Create(1, from(3, prev(prefix("a")))),
        Say::Create(1, from(6, key("a"))),
        Say::Create(1, from(7, key("a"))),
        Say::Create(1, from(2, filter(FilterType::Noput, prefix("")))),
        Say::Create(1, from(2, filter(FilterType::Nodelete, prefix("")))),
        Say::Create(1, from(9, watch(40, prefix("")))),
        Say::Put(put("a", "4")),
        Say::Put(put("c", "1")),
        Say::Put(put("a", "5")),
        Say::Cancel(1, 40),
        Say::Progress(1),
        Say::Cancel(1, 40),
        Say::Cancel(1, 41),
        Say::Create(1, watch(40, key("c"))),
        Say::Create(1, watch(40, key("c"))),
        Say::Batch(1, vec![key("x"), refused, watch(40, key("x")), from(8, key("c")), key("y")]),
        txn(vec![op_put("x", "1"), op_put("y", "1"), op_put("c", "2")]),
        read(5),
        read(100),
        // Compaction, with watches open.
        Say::Compact(8),
        read(7),
        read(8),
        Say::Open,
        Say::Create(2, from(7, key("a"))),
        Say::Progress(2),
        Say::Create(2, from(8, key("c"))),
        Say::Create(2, from(2, watch(9, prefix("")))),
        Say::Create(2, watch(9, key("a"))),
        Say::Cancel(2, 0),
        Say::Cancel(2, 9),
        Say::Create(2, watch(9, key("a"))),
        Say::Progress(2),
        Say::Compact(8),
        Say::Compact(100),
        Say::Create(2, from(8, prev(prefix("")))),
        // Leases, and a delete of many keys.
        Say::Grant(LeaseGrantRequest { ttl: 600, id: 77 }),
        Say::Grant(LeaseGrantRequest { ttl: 600, id: 77 }),
        Say::Put(PutRequest { lease: 77, ..put("leased/1", "1") }),
        Say::Put(PutRequest { lease: 77, ..put("leased/2", "1") }),
        Say::Put(PutRequest { lease: 78, ..put("leased/3", "1") }),
        Say::Put(PutRequest { ignore_value: true, ..put("leased/2", "") }),
        Say::Revoke(LeaseRevokeRequest { id: 77 }),
        Say::Revoke(LeaseRevokeRequest { id: 77 }),
        delete_all("a"),
        delete_all(""),
        Say::Progress(0),
        Say::Progress(1),
        Say::Progress(2),
        // Half-close: the watches continue.
        Say::HalfClose(0),
        Say::Put(put("a", "6")),
        Say::Cancel(2, 9),
        Say::Cancel(2, 1),
        Say::Put(put("a", "7")),
        read(0),
    ]
}
