//! [`Calls`]: unary calls over one connection, many at the same time.
//!
//! The calls themselves are in `writer`, `range` and `leases`. Always holds: a call that etcd refuses ends the run with
//! etcd's reason.

use std::{
    future::poll_fn,
    task::{Context, Poll},
};

use bytes::Bytes;
use hashbrown::HashMap;
use prost::Message as _;

use super::{
    BenchError, Endpoint,
    link::Link,
    message,
    plan::Plan,
    wire::{Event, STREAM_WINDOW, Status},
};
use crate::{pb::etcdserverpb as pb, types::KeyRange};

pub(super) const PUT: &str = "/etcdserverpb.KV/Put";
pub(super) const RANGE: &str = "/etcdserverpb.KV/Range";
pub(super) const TXN: &str = "/etcdserverpb.KV/Txn";
pub(super) const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
pub(super) const LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
pub(super) const LEASE_TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
const DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";

/// Number of keys that are deleted at once.
const DELETED: u64 = 5_000;

/// Receives the answers.
type OnAnswer<'a, T> = &'a mut dyn FnMut(T, &[u8]) -> Result<(), BenchError>;

/// Calls that wait for their answers, each with the context that its caller needs.
#[derive(Debug)]
pub(super) struct Calls<T> {
    link: Link,
    open: HashMap<u32, T>,
}

impl<T> Calls<T> {
    pub(super) async fn connect(endpoint: &Endpoint) -> Result<Self, BenchError> {
        Ok(Self { link: Link::connect(endpoint, STREAM_WINDOW).await?, open: HashMap::new() })
    }

    /// Sends a request at the next [`Self::poll`].
    pub(super) fn start(&mut self, method: &str, request: &[u8], context: T) {
        self.open.insert(self.link.sender().call(method, request), context);
    }

    /// Number of calls without an answer.
    pub(super) fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Passes on the answers that arrived. Ready only with an error.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
        answer: OnAnswer<'_, T>,
    ) -> Poll<BenchError> {
        let open = &mut self.open;
        self.link.poll(context, buffer, &mut |_, event| match event {
            Event::Message(id, bytes) => open.remove(&id).map_or(Ok(()), |context| answer(context, bytes)),
            Event::Ended(_, Status::Failed(reason)) => Err(BenchError::Refused(reason)),
            Event::Ended(id, Status::Ok) if open.contains_key(&id) => {
                Err(BenchError::Refused("the call ended without an answer".to_owned()))
            }
            Event::Ended(..) => Ok(()),
        })
    }
}

/// Makes one call over a connection of its own.
pub(super) async fn once(endpoint: &Endpoint, method: &str, request: &[u8]) -> Result<Vec<u8>, BenchError> {
    let mut calls = Calls::connect(endpoint).await?;
    calls.start(method, request, ());
    let mut buffer = vec![0; 16 << 10];
    let mut answer = None;
    poll_fn(|context| {
        let polled = calls.poll(context, &mut buffer, &mut |(), bytes| {
            answer = Some(bytes.to_vec());
            Ok(())
        });
        match (answer.take(), polled) {
            (Some(answer), _) => Poll::Ready(Ok(answer)),
            (None, Poll::Ready(error)) => Poll::Ready(Err(error)),
            (None, Poll::Pending) => Poll::Pending,
        }
    })
    .await
}

/// etcd's current revision.
pub(super) async fn revision(endpoint: &Endpoint) -> Result<i64, BenchError> {
    let request = pb::RangeRequest { key: Bytes::from_static(&[0]), count_only: true, ..Default::default() };
    let answer = once(endpoint, RANGE, &request.encode_to_vec()).await?;
    Ok(message::answered_revision(&answer)?)
}

/// Whether a key exists.
pub(super) async fn exists(endpoint: &Endpoint, key: &str) -> Result<bool, BenchError> {
    let request = pb::RangeRequest { key: key.to_owned().into(), count_only: true, ..Default::default() };
    let answer = once(endpoint, RANGE, &request.encode_to_vec()).await?;
    Ok(message::range_response(&answer)?.count > 0)
}

/// Deletes one key.
pub(super) async fn delete_one(endpoint: &Endpoint, key: &str) -> Result<(), BenchError> {
    let request = pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
    once(endpoint, DELETE_RANGE, &request.encode_to_vec()).await.map(|_| ())
}

/// Deletes the keys of a run in parts: etcd takes seconds to delete half a million at once, and answers nobody
/// meanwhile.
pub(super) async fn delete(endpoint: &Endpoint, plan: &Plan) -> Result<(), BenchError> {
    let mut calls = Calls::connect(endpoint).await?;
    let mut buffer = vec![0; 16 << 10];
    let mut first = 0;
    poll_fn(|context| {
        loop {
            if calls.in_flight() == 0 {
                if first >= plan.keys {
                    return Poll::Ready(Ok(()));
                }
                // The last part includes everything that is left.
                let (key, prefix_end) = KeyRange::prefix(plan.prefix.clone().into()).to_wire();
                let key = if first == 0 { key } else { plan.key(first).into() };
                first = first.saturating_add(DELETED);
                let range_end = if first < plan.keys { plan.key(first).into() } else { prefix_end };
                let request = pb::DeleteRangeRequest { key, range_end, prev_kv: false };
                calls.start(DELETE_RANGE, &request.encode_to_vec(), ());
            }
            if let Poll::Ready(error) = calls.poll(context, &mut buffer, &mut |(), _| Ok(())) {
                return Poll::Ready(Err(error));
            }
            if calls.in_flight() > 0 {
                return Poll::Pending;
            }
        }
    })
    .await
}
