//! Answers etcd's `KV.Range` from a feed's snapshot and history if they cover it, and forwards it otherwise.
//! `KV.RangeStream` is the same in several messages.
//!
//! A linearizable read asks etcd for its current revision, once for all waiting readers, and waits until the feed has
//! it. Whatever the relay cannot answer exactly as etcd would, including errors, is forwarded unchanged, so that etcd
//! answers it. Always holds: an answer is of one revision. For a linearizable read, this is at least the revision that
//! was current when the read came, and it is from the same cluster. The header names the cluster that the data came
//! from, and never a revision at which the data was already compacted.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::request::Parts;
use prost::{
    Message as _,
    encoding::{encode_varint, encoded_len_varint},
};
use smallvec::SmallVec;
use tokio::time::Instant;
use tonic::Status;

use super::{
    guard,
    pieces::{PREFIX, Writer, put_header, put_int},
    reply::{Reply, refuse_compressed},
};
use crate::{
    front::{
        access::{Access, Auth, WireRange},
        client::Client,
        listen::Connected,
    },
    hub::{Asker, Feed, Hub, Listing, RangeQuery, RangeReply, ReadError, SortOrder, SortTarget, WaitError},
    pb::etcdserverpb::{RangeRequest, range_request},
    telemetry::names::Read,
    types::{ClientKey, Header, KeyRange, Revision},
};

/// How long a serializable read of a past revision waits to learn whether that is compacted.
const PAST_PATIENCE: Duration = Duration::from_secs(1);
/// How long a linearizable read waits for its feed before it is forwarded. A feed catches up within a round trip to
/// etcd, so a read does not wait for a feed that has been behind for this long.
const PATIENCE: Duration = Duration::from_millis(100);
/// The longest such wait if etcd itself is slow: etcd would take as long again to answer the forwarded read.
const MOST_PATIENCE: Duration = Duration::from_secs(1);

/// If a read has taken longer than this, the client's permission is checked again before it gets the answer.
const GRANT_PATIENCE: Duration = Duration::from_secs(1);

/// Longest answer in bytes of key-values: etcd sends no message of 2 GiB.
const MAX_ANSWER: usize = i32::MAX as usize - 128;
/// How much of a large answer is made at a time, while its connection takes it. This fits into one write, and takes
/// some hundred microseconds at most, for which other connections of the thread wait.
const PART: usize = 128 << 10;
/// The usual length of the pieces that key-values come in.
const PIECE: usize = 6 << 10;
/// Approximate length of a message of `RangeStream`.
const MESSAGE: usize = 512 << 10;
/// Space for key-values that are copied into an answer.
const SMALL: usize = 2 << 10;

/// The result of a read.
pub(super) enum Answer {
    /// From memory.
    Local(Reply, Read),
    /// Upstream answers it, for this reason.
    Forward(Read),
    /// The relay answers with an error: etcd must not see the request, or the relay has no room for it.
    Refuse(Status, Read),
}

/// The result of a read, before it is put into a form.
pub(in crate::front) enum Found {
    /// From memory.
    Local(RangeReply, Read),
    /// Upstream answers it, for this reason.
    Forward(Read),
    /// The relay answers with an error.
    Refuse(Status, Read),
}

/// The number of messages of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `Range`: one.
    Whole,
    /// `RangeStream`: as many as needed, each with some key-values; the last one has the other fields.
    Stream,
}

/// Answers the single message of `body`, if the relay can answer it and the client that sent `parts` may read it.
pub(super) async fn answer(hub: &Arc<Hub>, access: &Access, parts: &Parts, body: &Bytes, form: Form) -> Answer {
    let refuse = |status| Answer::Refuse(status, Read::Refused);
    if let Err(status) = refuse_compressed(&parts.headers, "Range and RangeStream requests") {
        return refuse(status);
    }
    // etcd refuses what cannot be parsed, in its own words, if that does it no harm.
    let Some(request) = parse(body) else {
        return guard::check(guard::RANGE, &parts.headers, body)
            .map_or_else(refuse, |()| Answer::Forward(Read::ForwardedOther));
    };
    match find_in(hub, access, parts, request, form).await {
        Found::Local(reply, how) if form == Form::Stream => Answer::Local(messages(reply), how),
        // etcd reports in its own words that an answer is too large.
        Found::Local(reply, how) => {
            message(reply).map_or(Answer::Forward(Read::ForwardedOther), |reply| Answer::Local(reply, how))
        }
        Found::Forward(why) => Answer::Forward(why),
        Found::Refuse(status, why) => Answer::Refuse(status, why),
    }
}

/// Finds the answer to a request that came with `parts`, in any form.
pub(in crate::front) async fn find(hub: &Arc<Hub>, access: &Access, parts: &Parts, request: RangeRequest) -> Found {
    find_in(hub, access, parts, request, Form::Whole).await
}

async fn find_in(hub: &Arc<Hub>, access: &Access, parts: &Parts, request: RangeRequest, form: Form) -> Found {
    if !guard::sorts(request.sort_order, request.sort_target) {
        // etcd 3.5 does not check them, and a member that gets an unknown target panics.
        return Found::Refuse(guard::bad_sort(&request.key), Read::Refused);
    }
    let serializable = request.serializable;
    let query = query(request).and_then(|query| if form == Form::Whole { Some(query) } else { streamed(query) });
    let Some(query) = query else { return Found::Forward(Read::ForwardedOther) };
    let Some(feed) = hub.running(&query.range) else { return Found::Forward(Read::ForwardedOutside) };
    if !feed.is_serving() {
        return Found::Forward(Read::ForwardedLate);
    }
    let off = access.is_off();
    let mut granted = None;
    if !off {
        // Boxed, because otherwise reads without a check would be as large.
        if !Box::pin(is_granted(access, parts, &query.range)).await {
            return Found::Forward(Read::ForwardedAccess);
        }
        granted = Some(Instant::now());
    }
    feed.touch();
    let (reply, how) = match look(hub, access, &feed, &query, Origin { serializable, parts }).await {
        Ok(found) => found,
        Err(Read::Busy) => {
            return Found::Refuse(Status::resource_exhausted(ReadError::Busy.to_string()), Read::Busy);
        }
        Err(why) => return Found::Forward(why),
    };
    if off && !access.is_off() {
        // Authentication was enabled meanwhile.
        return Found::Forward(Read::ForwardedAccess);
    }
    // A long read may have waited for its turn longer than a grant is valid.
    if granted.is_some_and(|granted: Instant| granted.elapsed() > GRANT_PATIENCE)
        && !Box::pin(is_granted(access, parts, &query.range)).await
    {
        return Found::Forward(Read::ForwardedAccess);
    }
    Found::Local(reply, how)
}

/// Where a query comes from.
#[derive(Clone, Copy)]
struct Origin<'a> {
    serializable: bool,
    parts: &'a Parts,
}

impl Origin<'_> {
    /// The client to whose share of the long reads this read counts.
    fn asker(self) -> Asker {
        let connected = Connected::of(&self.parts.extensions);
        Asker {
            client: connected.map_or(ClientKey::RELAY, |connected| connected.caller.client),
            connection: connected.map_or(0, |connected| connected.id.0),
        }
    }
}

/// Returns the feed's answer with its header. The error is [`Read::Busy`] if the client has too many long reads under
/// way; any other error is the reason to forward the request.
async fn look(
    hub: &Hub,
    access: &Access,
    feed: &Arc<Feed>,
    query: &RangeQuery,
    origin: Origin<'_>,
) -> Result<(RangeReply, Read), Read> {
    let serializable = origin.serializable;
    let is_past = query.revision > Revision::ZERO;
    let confirmed = if !serializable {
        Some(reach_current(hub, access, feed, query.revision).await?)
    } else if is_past {
        Box::pin(readable_at(hub, access, feed, query.revision)).await?
    } else {
        None
    };
    // Checked before and after the look: a feed that restarts or ends has no answer.
    let served = feed.is_serving();
    let looked = query.answer(feed, || origin.asker()).await;
    if !served || !feed.is_serving() {
        return Err(Read::ForwardedLate);
    }
    let mut reply = looked.map_err(|error| match error {
        ReadError::Busy => Read::Busy,
        ReadError::Overtaken => Read::ForwardedLate,
        ReadError::Future | ReadError::BeforeHistory | ReadError::Failed => Read::ForwardedOther,
    })?;
    if let Some(confirmed) = &confirmed
        && (reply.header.cluster_id != confirmed.cluster_id
            || !serializable && reply.header.revision < confirmed.revision)
    {
        // The feed restarted between the answer and this check.
        return Err(Read::ForwardedLate);
    }
    let mut how = if serializable { Read::Snapshot } else { Read::Confirmed };
    if is_past {
        if query.revision < reply.header.revision {
            how = Read::History;
        }
        // At the feed's own revision, the past may already be compacted. It was not compacted at the confirmed
        // revision, nor is any revision at itself.
        let known = confirmed.map_or(Revision::ZERO, |confirmed| confirmed.revision).max(query.revision);
        reply.header.revision = reply.header.revision.min(known);
    }
    Ok((reply, how))
}

/// Whether the client that sent the request may read the range. If that is unknown, the read does not wait, because
/// etcd can answer it.
async fn is_granted(access: &Access, parts: &Parts, range: &KeyRange) -> bool {
    // These are exactly the client's bytes: a range with a key is written as it was read.
    let client = Client::of(&parts.headers, &parts.extensions);
    access.known().auth == Auth::On && access.permits(&client, &WireRange::of(range)).await
}

/// The revision at which etcd confirms that a past revision can be read; `None` if it does not answer in time.
///
/// # Errors
/// Fails if the revision is compacted, or if another cluster answers than the feed's.
async fn readable_at(hub: &Hub, access: &Access, feed: &Feed, past: Revision) -> Result<Option<Header>, Read> {
    let mark = feed.mark();
    let confirmed = tokio::time::timeout(PAST_PATIENCE, hub.confirmer().confirm(Some(past))).await;
    match &confirmed {
        Ok(Ok(_)) => access.heard(),
        Ok(Err(error)) => access.failed(error),
        Err(_) => {}
    }
    match confirmed {
        Ok(Ok(confirmed)) if confirmed.compacted => Err(Read::ForwardedOther),
        Ok(Ok(confirmed)) => {
            feed.check(mark, &confirmed.header).map_err(|_| Read::ForwardedLate)?;
            Ok(Some(confirmed.header))
        }
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

/// Waits until the feed has the current revision, and returns upstream's answer. A requested past revision must not be
/// compacted at etcd.
async fn reach_current(hub: &Hub, access: &Access, feed: &Feed, past: Revision) -> Result<Header, Read> {
    if feed.lag().is_some_and(|lag| lag.time >= PATIENCE) {
        return Err(Read::ForwardedLate);
    }
    let past = (past > Revision::ZERO).then_some(past);
    let (mark, asked) = (feed.mark(), Instant::now());
    let confirmed = hub.confirmer().confirm(past).await.map_err(|error| {
        access.failed(&error);
        Read::ForwardedLate
    })?;
    let patience = asked.elapsed().clamp(PATIENCE, MOST_PATIENCE);
    access.heard();
    if confirmed.compacted {
        return Err(Read::ForwardedOther);
    }
    feed.reach(mark, &confirmed.header, patience).await.map_err(|error| match error {
        WaitError::Timeout => {
            feed.expect(mark, &confirmed.header);
            Read::ForwardedLate
        }
        WaitError::Denied | WaitError::Replaced => Read::ForwardedLate,
        WaitError::Unknown => Read::ForwardedUntrusted,
    })?;
    Ok(confirmed.header)
}

/// The request, if the body is one uncompressed gRPC message.
fn parse(body: &Bytes) -> Option<RangeRequest> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let len = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    if prefix[0] != 0 || len != message.len() {
        return None;
    }
    RangeRequest::decode(body.slice(PREFIX..)).ok()
}

/// The query, unless etcd would refuse the request.
fn query(request: RangeRequest) -> Option<RangeQuery> {
    if request.key.is_empty() {
        return None;
    }
    let sort_order = match range_request::SortOrder::try_from(request.sort_order).ok()? {
        range_request::SortOrder::None => SortOrder::None,
        range_request::SortOrder::Ascend => SortOrder::Ascend,
        range_request::SortOrder::Descend => SortOrder::Descend,
    };
    let sort_target = match range_request::SortTarget::try_from(request.sort_target).ok()? {
        range_request::SortTarget::Key => SortTarget::Key,
        range_request::SortTarget::Version => SortTarget::Version,
        range_request::SortTarget::Create => SortTarget::Create,
        range_request::SortTarget::Mod => SortTarget::Mod,
        range_request::SortTarget::Value => SortTarget::Value,
    };
    Some(RangeQuery {
        range: KeyRange::from_wire(request.key, request.range_end).ok()?,
        // etcd takes a negative limit as no limit.
        limit: usize::try_from(request.limit).unwrap_or(0),
        revision: Revision::new(request.revision),
        sort_order,
        sort_target,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: Revision::new(request.min_mod_revision),
        max_mod_revision: Revision::new(request.max_mod_revision),
        min_create_revision: Revision::new(request.min_create_revision),
        max_create_revision: Revision::new(request.max_create_revision),
    })
}

/// The query, if etcd streams it as one list: in key order and unfiltered. Everything else is forwarded. etcd refuses
/// most of it, but if a target other than the key comes without an order, it sorts each message separately.
fn streamed(query: RangeQuery) -> Option<RangeQuery> {
    let by_key = query.sort_target == SortTarget::Key && query.sort_order != SortOrder::Descend;
    let bounds = [query.min_mod_revision, query.max_mod_revision, query.min_create_revision, query.max_create_revision];
    let plain = by_key && bounds.iter().all(|bound| *bound == Revision::ZERO);
    plain.then_some(query)
}

/// Makes the `RangeStreamResponse`s, with the same content as [`message`].
fn messages(reply: RangeReply) -> Reply {
    let RangeReply { header, kvs, more, count } = reply;
    let tail = Tail { more, count: count as u64 };
    Reply::of_parts(Writer::default(), Rest { kvs, tail, each: Some(header) })
}

/// Makes the `RangeResponse` from the encoded key-values in the snapshot. `None` if it is too long for one message.
fn message(reply: RangeReply) -> Option<Reply> {
    let RangeReply { header, kvs, more, count } = reply;
    let shared = kvs.encoded_len();
    if shared > MAX_ANSWER {
        return None;
    }
    let tail = Tail { more, count: count as u64 };
    let mut writer = Writer::with_capacity(shared.min(SMALL) + 96);
    writer.message(shared + tail.len(), |own| put_header(own, &header));
    Some(Reply::of_parts(writer, Rest { kvs, tail, each: None }))
}

/// The part of a `RangeResponse` after its header, or all messages of a stream. It is made as the connection takes it.
#[derive(Debug)]
pub(super) struct Rest {
    kvs: Listing,
    tail: Tail,
    /// If set, each part is a separate message, and this is the header of the last one.
    each: Option<Header>,
}

/// The last fields of a `RangeResponse`.
#[derive(Clone, Copy, Debug)]
struct Tail {
    more: bool,
    count: u64,
}

impl Rest {
    /// How many bytes are not written yet. `None` if that depends on how they are divided into messages.
    pub(super) fn len(&self) -> Option<u64> {
        self.each.is_none().then(|| (self.kvs.encoded_len() + self.tail.len()) as u64)
    }

    /// Writes the next part. Returns false if it is the last.
    pub(super) fn write(&mut self, writer: &mut Writer) -> bool {
        if let Some(header) = self.each {
            return self.write_message(&header, writer);
        }
        writer.reserve(self.kvs.encoded_len().min(PART) / PIECE);
        self.kvs.take(PART, |bytes| writer.shared_or_owned(bytes));
        let last = self.kvs.is_empty();
        if last {
            writer.tail(|own| self.tail.put(own));
        }
        !last
    }
}

impl Rest {
    /// Writes a part as one message, or as several if key-values are large. Returns false if it is the last part.
    fn write_message(&mut self, header: &Header, writer: &mut Writer) -> bool {
        // Each piece contains one or more complete key-values.
        let mut taken: SmallVec<[Bytes; 32]> = SmallVec::new();
        self.kvs.take(MESSAGE, |bytes| taken.push(bytes.into_owned()));
        let last = self.kvs.is_empty();
        let mut left = &taken[..];
        while !left.is_empty() || last {
            let mut length = 0;
            let fits = |bytes: &&Bytes| {
                let room = length < MESSAGE;
                length += bytes.len();
                room
            };
            let many = left.iter().take_while(fits).count();
            let (now, later) = left.split_at(many);
            left = later;
            let mut end = BytesMut::new();
            if last && left.is_empty() {
                put_header(&mut end, header);
                self.tail.put(&mut end);
            }
            let response = now.iter().map(Bytes::len).sum::<usize>() + end.len();
            writer.message(response, |own| {
                // Field 1 is the `RangeResponse`, whose fields may come in any order.
                own.put_u8(0x0a);
                encode_varint(response as u64, own);
            });
            now.iter().for_each(|bytes| writer.shared(bytes));
            writer.tail(|own| own.put_slice(&end));
            if left.is_empty() {
                break;
            }
        }
        !last
    }
}

impl Tail {
    fn put(self, buffer: &mut BytesMut) {
        put_int(buffer, 3, u64::from(self.more));
        put_int(buffer, 4, self.count);
    }

    fn len(self) -> usize {
        let count = if self.count == 0 { 0 } else { 1 + encoded_len_varint(self.count) };
        2 * usize::from(self.more) + count
    }
}

#[cfg(test)]
mod tests;
