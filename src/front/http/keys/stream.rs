//! [`WatchEvents`]: `GET /v1/watch`, a watch as a stream of server-sent events.
//!
//! The connection polls it when the client has taken the previous data, so a client that does not read parks its watch,
//! as over gRPC. The text of events is in `text`, opening a watch in `follow`, and the first content of a stream in
//! `begin`. Always holds:
//! - a reader that got an id has everything up to that revision, and gets nothing of it again on this stream;
//! - live events are written once for all streams that get them in the same form, and are sent without a copy;
//! - a stream holds no more than its queue, the part that is being written, and its first content;
//! - a reader in `mode=state` gets the last change of each key that it has missed, however much it has missed.

use std::{
    cell::Cell,
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::future::BoxFuture;
use smallvec::SmallVec;
use tokio::time::{Instant, Sleep, sleep};

use super::{
    begin::Begin,
    counted::{self, OpenStream},
    follow::{FRAME_BYTES, Follow, Opened, Wanted, Watching},
    json::put_number,
    reply::Failure,
    text::{end_event, put_compacted, put_end, put_newest, put_revision},
};
use crate::{
    front::pieces::{Pieces, SHARE_FROM, Writer},
    hub::{Cancellation, Delivery, Drained, Payload, ProgressAnswer, StreamEnd},
    telemetry::names::KeysSnapshot,
    types::Revision,
};

/// Time between heartbeats, which show that the stream is alive.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);
/// When browsers reconnect, in milliseconds. Each gets another time from this range.
const RETRY: std::ops::Range<i64> = 1_000..3_000;
/// Event bytes that are reduced to the last event of each key in one step.
const STATE_BYTES: usize = 256 << 10;
/// Number of deliveries for which a thread keeps memory.
const BATCH_KEPT: usize = 64;
/// etcd's error for a compacted past.
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
/// The text for a reader whose past belongs to another cluster.
const REPLACED: &str = "etcd-relay: these keys belonged to another cluster, which has been replaced";

thread_local! {
    /// Holds deliveries between the queue and the text; all streams of a thread share it.
    static BATCH: Cell<Vec<Delivery>> = const { Cell::new(Vec::new()) };
}

/// See the module.
#[derive(Debug)]
pub struct WatchEvents {
    watching: Arc<Watching>,
    /// The watch; `None` while another one is being opened, and at the end.
    follow: Option<Follow>,
    opening: Option<Opening>,
    cluster_id: u64,
    /// Text to send before anything else.
    head: Vec<u8>,
    begin: Option<Begin>,
    /// Deliveries that came directly after the creation of the watch.
    waiting: Vec<Delivery>,
    /// The reader has everything up to this revision, or gets it with the first content.
    through: Revision,
    /// The watch has reached the present. From here on, it misses events only if its reader is slow.
    is_live: bool,
    heartbeat: Heartbeat,
    /// The stream ends after the text that is waiting.
    ended: bool,
    open: OpenStream,
}

/// Another watch that is being opened, and why.
struct Opening(BoxFuture<'static, Result<Opened, Failure>>, KeysSnapshot);

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Opening").field(&self.1).finish_non_exhaustive()
    }
}

impl WatchEvents {
    /// The stream that continues with a watch.
    pub(super) fn new(watching: Arc<Watching>, opened: Opened) -> Self {
        let mut head = Vec::with_capacity(64);
        put_number("retry: ", fastrand::i64(RETRY), &mut head);
        head.extend_from_slice(b"\n\n");
        let through = watching.watch.since.unwrap_or_default();
        let mut events = Self {
            cluster_id: opened.cluster_id,
            watching,
            follow: None,
            opening: None,
            head,
            begin: None,
            waiting: Vec::new(),
            through,
            is_live: false,
            heartbeat: Heartbeat(Box::pin(sleep(HEARTBEAT))),
            ended: false,
            open: OpenStream::new(),
        };
        events.go_on(opened, KeysSnapshot::Start);
        events
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended && self.head.is_empty()
    }

    /// The next data to send.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Pieces>> {
        loop {
            if let Some(part) = self.begin_with() {
                return Poll::Ready(Some(part));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(Opening(opening, why)) = &mut self.opening {
                let why = *why;
                match opening.as_mut().poll(cx) {
                    Poll::Ready(Ok(opened)) => self.resume(opened, why),
                    Poll::Ready(Err(failure)) => self.end(&failure),
                    Poll::Pending if self.heartbeat.poll_due(cx) => put_heartbeat(None, &mut self.head),
                    Poll::Pending => return Poll::Pending,
                }
                continue;
            }
            if self.has_missed_too_much() {
                self.open(Wanted::Newest(self.through), KeysSnapshot::Behind);
                continue;
            }
            match self.poll_events(cx) {
                Poll::Ready(events) if events.has_remaining() => return Poll::Ready(Some(events)),
                // There was nothing in it for this reader, or it was stored elsewhere.
                Poll::Ready(_) => {}
                Poll::Pending if self.heartbeat.poll_due(cx) => {
                    let follow = self.follow.as_ref();
                    let told = follow.is_some_and(|follow| follow.stream.answer_progress() == ProgressAnswer::Sent);
                    if !told {
                        put_heartbeat(None, &mut self.head);
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The content before the watch's events.
    fn begin_with(&mut self) -> Option<Pieces> {
        if self.head.is_empty() && self.begin.is_none() {
            return None;
        }
        let mut part = mem::take(&mut self.head);
        if let Some(begin) = &mut self.begin
            && !begin.write(self.watching.watch.form, &mut part)
        {
            self.begin = None;
        }
        self.open.sent(part.len(), None);
        Some(part.into())
    }

    fn open(&mut self, wanted: Wanted, why: KeysSnapshot) {
        self.follow = None;
        self.waiting = Vec::new();
        self.opening = Some(Opening(Box::pin(self.watching.clone().open(wanted)), why));
    }

    /// Continues with another watch.
    fn resume(&mut self, opened: Opened, why: KeysSnapshot) {
        self.opening = None;
        let is_another = mem::replace(&mut self.cluster_id, opened.cluster_id) != opened.cluster_id;
        if is_another && !opened.begin.as_ref().is_some_and(Begin::is_snapshot) {
            // The changes since then were looked up in the history of another cluster.
            put_compacted(Revision::ZERO, REPLACED, &mut self.head);
            return self.open(Wanted::All, KeysSnapshot::Compacted);
        }
        self.go_on(opened, why);
    }

    fn go_on(&mut self, opened: Opened, why: KeysSnapshot) {
        if let Some(begin) = &opened.begin {
            self.through = begin.revision();
            // A watch that begins here has no past.
            self.is_live = true;
            if begin.is_snapshot() {
                counted::snapshot(why);
            }
        }
        self.begin = opened.begin;
        self.waiting = opened.waiting;
        self.follow = Some(opened.follow);
    }

    /// Whether the reader wants only the newest values and would now get outdated ones as well.
    fn has_missed_too_much(&self) -> bool {
        let is_behind = |follow: &Follow| follow.stream.is_behind();
        self.is_live && self.watching.wants_newest() && self.follow.as_ref().is_some_and(is_behind)
    }

    /// The watch's events as text. If the watch ends, its reason is stored to be written after them.
    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Pieces> {
        let Some(follow) = &self.follow else { return Poll::Ready(Pieces::default()) };
        let most = if self.watching.wants_newest() { STATE_BYTES } else { FRAME_BYTES };
        let mut batch = BATCH.take();
        let drained = if self.waiting.is_empty() {
            follow.stream.poll_drain(cx, &mut batch, most)
        } else {
            batch.append(&mut self.waiting);
            Poll::Ready(Drained::Some)
        };
        let events = match drained {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Drained::Some) => Poll::Ready(self.write(&mut batch)),
            Poll::Ready(Drained::End(end)) => {
                match end {
                    // The reader was told its position, and continues at another relay.
                    StreamEnd::Stopping => self.ended = true,
                    end => self.end(&Failure::of_end(end)),
                }
                Poll::Ready(Pieces::default())
            }
        };
        batch.shrink_to(BATCH_KEPT);
        BATCH.set(batch);
        events
    }

    /// Writes a batch as text and empties it.
    fn write(&mut self, batch: &mut Vec<Delivery>) -> Pieces {
        let mut events: SmallVec<[(Arc<Payload>, usize); 2]> = SmallVec::new();
        let (mut waited, mut progress, mut cancellation) = (None, false, None);
        for delivery in batch.drain(..) {
            match delivery {
                Delivery::Created { .. } => {}
                Delivery::Events { payload, from, as_of, replay, .. } => {
                    let from = payload.before(self.through.next()).max(from as usize);
                    if from == payload.revisions() {
                        // The first content of the stream already has it.
                        continue;
                    }
                    self.through = payload.revision();
                    self.is_live |= as_of.is_none();
                    if !replay && waited.is_none() {
                        waited = payload.received(from).map(|received| received.elapsed());
                    }
                    events.push((payload, from));
                }
                Delivery::Progress { stamp, .. } => {
                    self.through = self.through.max(stamp.revision);
                    self.is_live = true;
                    progress = true;
                }
                Delivery::Canceled(canceled) => cancellation = cancellation.or(Some(canceled)),
            }
        }
        let mut text = self.text(&events);
        if progress {
            let mut told = Vec::new();
            put_heartbeat(Some(self.through), &mut told);
            text.push(told.into());
        }
        if text.has_remaining() {
            self.open.sent(text.remaining(), waited);
        }
        if let Some(cancellation) = cancellation {
            self.canceled(&cancellation);
        }
        text
    }

    fn text(&self, events: &[(Arc<Payload>, usize)]) -> Pieces {
        let form = self.watching.watch.form;
        let text = |(payload, from): &(Arc<Payload>, usize)| {
            let text = payload.text(form.index(), |whole, to| put_revision(whole, form, to));
            text.from(*from)
        };
        let revisions: usize = events.iter().map(|(payload, from)| payload.revisions() - from).sum();
        if self.watching.wants_newest() && revisions > 1 {
            let mut newest = Vec::new();
            put_newest(events.iter().map(|(payload, from)| (&**payload, *from)), form, &mut newest);
            return newest.into();
        }
        match events {
            [] => Pieces::default(),
            // All streams get the same bytes.
            [one] => text(one).into(),
            several => {
                let texts: SmallVec<[Bytes; 16]> = several.iter().map(text).collect();
                let small = texts.iter().map(Bytes::len).filter(|len| *len < SHARE_FROM).sum();
                let mut writer = Writer::with_capacity(small);
                texts.iter().for_each(|text| writer.shared(text));
                writer.finish()
            }
        }
    }

    /// Handles the end of the watch. If its past is gone, the stream continues with the current keys.
    fn canceled(&mut self, cancellation: &Cancellation) {
        let Cancellation { compact_revision, reason, .. } = cancellation;
        if *compact_revision == Revision::ZERO {
            return self.end(&Failure::of_watch(reason));
        }
        let reason = if reason.is_empty() { COMPACTED } else { reason };
        put_compacted(*compact_revision, reason, &mut self.head);
        self.open(Wanted::All, KeysSnapshot::Compacted);
    }

    /// Ends the stream with a reason.
    fn end(&mut self, failure: &Failure) {
        self.opening = None;
        self.follow = None;
        put_end(failure.status.as_u16(), &failure.text, &mut self.head);
        self.ended = true;
    }
}

/// Appends a heartbeat, with an id if it is known up to which revision the reader has everything.
fn put_heartbeat(through: Option<Revision>, to: &mut Vec<u8>) {
    to.extend_from_slice(b": heartbeat\n");
    end_event(through, to);
}

/// The timer of the next heartbeat.
#[derive(Debug)]
struct Heartbeat(Pin<Box<Sleep>>);

impl Heartbeat {
    fn poll_due(&mut self, cx: &mut Context<'_>) -> bool {
        let due = self.0.as_mut().poll(cx).is_ready();
        if due {
            self.0.as_mut().reset(Instant::now() + HEARTBEAT);
        }
        due
    }
}
