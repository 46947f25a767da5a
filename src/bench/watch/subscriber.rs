//! [`Subscriber`]: one connection with its watches, and what each of them has received.
//!
//! When it connects and reads is decided in `fleet`; checks are in `check`, and the text of server-sent events is read
//! in `sse` and `block`. Always holds: only some thousand watches are created at a time, so opening millions needs no
//! memory for requests.

use std::{
    ops::Range,
    task::{Context, Poll},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use prost::Message as _;

use super::{
    Watch,
    block::Encoding,
    fleet::Thread,
    sse::{EventStream, Said},
};
use crate::{
    bench::{
        check::{Scope, Seen, Truth, Unfinished, Wrong},
        link::Link,
        message,
        plan::Plan,
        report::{self, Findings},
        wire::{Event, Sender, Status},
    },
    pb::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion},
    types::KeyRange,
};

pub(super) const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// Watches of a connection that are being created at the same time.
const CREATING: u64 = 4096;

/// What a connection does during the writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It reads.
    Healthy,
    /// It does not read until the writes are over.
    Slow,
    /// It disconnects and comes back.
    Reconnecting,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) role: Role,
    wire: Option<Wire>,
    watches: Watches,
    failed: Option<Wrong>,
}

/// What a connection speaks.
#[derive(Debug)]
pub(super) enum Wire {
    /// gRPC.
    Grpc(Link),
    /// Server-sent events of a single watch, with what came after the last id.
    Sse(EventStream, Unfinished),
}

/// The watches of a connection.
#[derive(Debug)]
struct Watches {
    role: Role,
    /// The connection's number.
    number: u64,
    streams: Vec<StreamSeen>,
    /// Number of open streams on this connection. Their numbers are odd and consecutive.
    opened: usize,
    creating: u64,
    created: u64,
    /// Whether this is not the first connection.
    resumed: bool,
    delivered: u64,
    measured: u64,
    delays: u64,
}

#[derive(Debug)]
struct StreamSeen(Vec<Seen>);

impl Subscriber {
    pub(super) fn new(options: &Watch, number: u64) -> Self {
        let role = if number < options.slow {
            Role::Slow
        } else if number < options.slow + options.reconnecting {
            Role::Reconnecting
        } else {
            Role::Healthy
        };
        let stream = || StreamSeen(vec![Seen::default(); usize::try_from(options.watches).unwrap_or(0)]);
        let watches = Watches {
            role,
            number,
            streams: (0..options.streams).map(|_| stream()).collect(),
            opened: 0,
            creating: 0,
            created: 0,
            resumed: false,
            delivered: 0,
            measured: 0,
            delays: 0,
        };
        Self { role, wire: None, watches, failed: None }
    }

    /// Its number among all connections.
    pub(super) fn number(&self) -> u64 {
        self.watches.number
    }

    /// The path of the watch as server-sent events.
    pub(super) fn path(&self, encoding: Encoding, thread: &Thread) -> String {
        let range = match self.watches.scope(&thread.options, 0, 0) {
            Scope::All => format!("prefix={}", percent_encode(&thread.plan.prefix, NON_ALPHANUMERIC)),
            Scope::Key(index) => format!("key={}", percent_encode(&thread.plan.key(index), NON_ALPHANUMERIC)),
        };
        let after = self.watches.after(&self.watches.streams[0].0[0], thread);
        let since = after.map(|after| format!("&since={after}")).unwrap_or_default();
        format!("/v1/watch?{range}&encoding={}{since}", encoding.name())
    }

    /// Uses a new connection, on which all watches must be created.
    pub(super) fn connected(&mut self, mut wire: Wire, thread: &Thread) {
        (self.watches.opened, self.watches.creating, self.watches.created) = (0, 0, 0);
        if let Wire::Grpc(link) = &mut wire {
            self.watches.open(link.sender(), thread);
        }
        self.wire = Some(wire);
    }

    /// Closes the connection and keeps the results.
    pub(super) fn disconnect(&mut self) {
        self.wire = None;
        self.watches.resumed = true;
    }

    /// Whether all watches of this connection were created.
    pub(super) fn is_created(&self) -> bool {
        self.watches.created == self.watches.all()
    }

    /// Whether all watches were created at least once.
    pub(super) fn was_created(&self) -> bool {
        self.watches.resumed || self.is_created()
    }

    /// Reads. Ready with an error.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, thread: &mut Thread) -> Poll<Wrong> {
        let Self { wire: Some(wire), watches, .. } = self else { return Poll::Pending };
        // The thread lends its buffer, and the histograms for the delays.
        let mut buffer = std::mem::take(&mut thread.buffer);
        let polled = match wire {
            Wire::Grpc(link) => {
                link.poll(context, &mut buffer, &mut |sender, event| watches.event(sender, event, thread))
            }
            Wire::Sse(stream, unfinished) => {
                stream.poll(context, &mut buffer, &mut |said| watches.said(unfinished, said, thread))
            }
        };
        thread.buffer = buffer;
        polled
    }

    /// Gives up the connection.
    pub(super) fn fail(&mut self, wrong: Wrong) {
        self.wire = None;
        self.failed = Some(wrong);
    }

    /// The number of expected deliveries; for one that was given up, as many as it received.
    pub(super) fn expected(&self, options: &Watch, truth: &Truth) -> u64 {
        if self.failed.is_some() {
            return self.watches.delivered;
        }
        self.watches.each(options).map(|(_, scope, seen)| seen.expected(truth, scope)).sum()
    }

    /// Checks each watch.
    pub(super) fn conclude(&self, options: &Watch, plan: &Plan, truth: &Truth, findings: &mut Findings) {
        let number = self.watches.number;
        if let Some(wrong) = &self.failed {
            return findings.add(format_args!("connection {number}: {wrong}"));
        }
        for ((stream, watch), scope, seen) in self.watches.each(options) {
            if let Err(wrong) = seen.conclude(plan, truth, scope) {
                findings.add(format_args!("connection {number}, stream {stream}, watch {watch}: {wrong}"));
            }
        }
    }

    /// Its mean delay in nanoseconds, if its delays count and there were any.
    pub(super) fn mean_delay(&self) -> Option<f64> {
        (self.watches.measured > 0).then(|| self.watches.delays as f64 / self.watches.measured as f64)
    }
}

impl Watches {
    fn all(&self) -> u64 {
        self.streams.iter().map(|stream| stream.0.len() as u64).sum()
    }

    /// Each watch with its stream and number, and its range.
    fn each<'a>(&'a self, options: &'a Watch) -> impl Iterator<Item = ((usize, usize), Scope, &'a Seen)> {
        self.streams.iter().enumerate().flat_map(move |(stream, watches)| {
            let each = watches.0.iter().enumerate();
            each.map(move |(watch, seen)| ((stream, watch), self.scope(options, stream, watch), seen))
        })
    }

    /// Watches cover the keys one by one, each stream starting where the previous one ended.
    fn scope(&self, options: &Watch, stream: usize, watch: usize) -> Scope {
        if !options.distinct {
            return Scope::All;
        }
        Scope::Key(self.watch_number(options, stream, watch) % options.keys)
    }

    /// The number of a watch among those of all connections.
    fn watch_number(&self, options: &Watch, stream: usize, watch: usize) -> u64 {
        let stream = self.number * options.streams + stream as u64;
        stream * options.watches + watch as u64
    }

    /// The revision after which a watch begins; `None` if it begins at the next write.
    fn after(&self, seen: &Seen, thread: &Thread) -> Option<i64> {
        match (self.resumed, thread.options.history) {
            (true, _) => Some(seen.through(&thread.plan)),
            (false, 0) => None,
            (false, _) => Some(thread.plan.base),
        }
    }

    /// Opens streams and requests their watches, as far as the limit allows.
    fn open(&mut self, sender: &mut Sender, thread: &Thread) {
        let (options, plan) = (&thread.options, &thread.plan);
        while self.creating < CREATING && self.opened < self.streams.len() {
            let id = sender.open(WATCH);
            for (watch, seen) in self.streams[self.opened].0.iter().enumerate() {
                let (key, range_end) = match self.scope(options, self.opened, watch) {
                    Scope::All => {
                        let number = self.watch_number(options, self.opened, watch);
                        around(&plan.prefix, number % options.ranges)
                    }
                    Scope::Key(index) => (plan.key(index).into(), Bytes::new()),
                };
                let start_revision = self.after(seen, thread).map_or(0, |after| after + 1);
                let create = WatchCreateRequest { key, range_end, start_revision, ..Default::default() };
                let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
                sender.send(id, &request.encode_to_vec());
            }
            self.creating += self.streams[self.opened].0.len() as u64;
            self.opened += 1;
        }
    }

    fn event(&mut self, sender: &mut Sender, event: Event<'_>, thread: &mut Thread) -> Result<(), Wrong> {
        let (id, bytes) = match event {
            Event::Message(id, bytes) => (id, bytes),
            Event::Ended(_, Status::Ok) => return Err(Wrong::Ended("the server ended the stream".to_owned())),
            Event::Ended(_, Status::Failed(reason)) => return Err(Wrong::Ended(reason)),
        };
        let stream = (id / 2) as usize;
        let head = message::watch_response(bytes)?;
        if head.canceled {
            let reason = String::from_utf8_lossy(head.cancel_reason).into_owned();
            return Err(Wrong::Canceled { compact_revision: head.compact_revision, reason });
        }
        // Every server numbers the watches of a stream from zero, in the order of their requests.
        let watch = usize::try_from(head.watch_id).map_err(|_| Wrong::UnknownWatch(head.watch_id))?;
        let scope = self.scope(&thread.options, stream, watch);
        let seen = self.streams.get_mut(stream).and_then(|stream| stream.0.get_mut(watch));
        let seen = seen.ok_or(Wrong::UnknownWatch(head.watch_id))?;
        if head.created {
            if !self.resumed {
                let from = if thread.options.history == 0 { head.revision } else { thread.plan.base };
                *seen = Seen::after(&thread.plan, from);
                thread.created();
            }
            self.created += 1;
            self.creating = self.creating.saturating_sub(1);
            self.open(sender, thread);
            return Ok(());
        }
        let now = thread.plan.now();
        let first = thread.options.first_measured();
        let counts = self.role == Role::Healthy;
        let joining = thread.joining();
        let Thread { plan, delays, joining_delays, .. } = thread;
        let (measured, sum) = (&mut self.measured, &mut self.delays);
        let events = seen.response(plan, scope, bytes, |number, sent| {
            if counts && number >= first {
                *measured += 1;
                *sum += note(delays, joining_delays, &joining, sent, now);
            }
        })?;
        self.delivered += events;
        thread.delivered(events, now);
        Ok(())
    }

    /// Handles what comes on a stream of server-sent events.
    fn said(&mut self, unfinished: &mut Unfinished, said: Said<'_>, thread: &mut Thread) -> Result<(), Wrong> {
        let scope = self.scope(&thread.options, 0, 0);
        let Said::Block(text) = said else {
            // Without a revision to begin after, the first id shows where it begins.
            if let Some(after) = self.after(&self.streams[0].0[0], thread) {
                self.begin(after, unfinished, thread);
            }
            return Ok(());
        };
        let now = thread.plan.now();
        let block = thread.blocks.read(&thread.plan, text)?;
        if self.created == 0 {
            if block.put.is_some() {
                return Err(Wrong::Text("an event before the first id".to_owned()));
            }
            block.id.into_iter().for_each(|id| self.begin(id, unfinished, thread));
            return Ok(());
        }
        if let Some(told) = block.put {
            unfinished.event(&thread.plan, scope, &told)?;
            if self.role == Role::Healthy && told.put.number >= thread.options.first_measured() {
                let joining = thread.joining();
                self.measured += 1;
                self.delays += note(&mut thread.delays, &mut thread.joining_delays, &joining, told.put.sent, now);
            }
        }
        if let Some(id) = block.id {
            let events = unfinished.id(&thread.plan, id, &mut self.streams[0].0[0])?;
            if events > 0 {
                self.delivered += events;
                thread.delivered(events, now);
            }
        }
        Ok(())
    }

    /// The only watch of a stream of server-sent events was created, and begins after this revision.
    fn begin(&mut self, after: i64, unfinished: &mut Unfinished, thread: &Thread) {
        let seen = &mut self.streams[0].0[0];
        if !self.resumed {
            *seen = Seen::after(&thread.plan, after);
            thread.created();
        }
        *unfinished = Unfinished::after(seen);
        self.created = 1;
    }
}

/// Records the delay of an event, and returns it.
fn note(
    delays: &mut Histogram<u64>,
    joining_delays: &mut Histogram<u64>,
    joining: &Range<u64>,
    sent: u64,
    now: u64,
) -> u64 {
    let delay = now.saturating_sub(sent);
    report::note(delays, delay);
    if joining.contains(&now) || joining.contains(&sent) {
        report::note(joining_delays, delay);
    }
    delay
}

/// The key and the `range_end` of a range that contains all keys below the prefix. Each number gives another range, and
/// zero gives the prefix itself.
fn around(prefix: &[u8], number: u64) -> (Bytes, Bytes) {
    let (key, end) = KeyRange::prefix(Bytes::copy_from_slice(prefix)).to_wire();
    if number == 0 {
        return (key, end);
    }
    // No key of this run or of another one lies between the two ends: theirs have a slash after as many characters.
    (key, [&end[..], number.to_string().as_bytes()].concat().into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ranges_differ_and_contain_all_keys() {
        let ranges: BTreeSet<_> = (0..1000).map(|number| around(b"/run/", number)).collect();
        assert_eq!(ranges.len(), 1000);
        for (key, end) in ranges {
            let range = KeyRange::from_wire(key, end).expect("a range");
            assert!(range.covers(&KeyRange::prefix("/run/".into())), "{range}");
        }
        assert_eq!(around(b"/run/", 0), KeyRange::prefix("/run/".into()).to_wire());
    }
}
