//! [`WatchStream`]: a watch stream with explicit requests, which keeps each response as it came.
//!
//! It has none of the features of a client library (resumption, merging of fragments, ids by order), because the tests
//! check the wire format. A task reads all the time, so a busy test is not a slow reader.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataKey, MetadataValue},
    transport::Channel,
};

use super::{kv, patience, quiet_time};

/// A response and when it came.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The time of its arrival.
    pub at: Instant,
    /// The response.
    pub response: WatchResponse,
}

/// How a stream ended: normally or with an error.
type Ended = Result<(), Status>;

/// An open watch stream.
#[derive(Debug)]
pub struct WatchStream {
    requests: Option<mpsc::UnboundedSender<WatchRequest>>,
    record: Arc<Mutex<Vec<Recorded>>>,
    length: watch::Receiver<usize>,
    read: usize,
    paused: watch::Sender<bool>,
    reader: Option<JoinHandle<Ended>>,
}

impl WatchStream {
    /// Opens a stream on a separate connection.
    pub async fn open(endpoint: &str) -> Self {
        Self::over(kv::channel(endpoint).await, &[])
    }

    /// Opens a stream with metadata, such as `hasleader: true`.
    pub async fn open_with(endpoint: &str, metadata: &[(&str, &str)]) -> Self {
        Self::over(kv::channel(endpoint).await, metadata)
    }

    /// Opens a stream on a connection that may carry other streams.
    pub fn over(channel: Channel, metadata: &[(&str, &str)]) -> Self {
        #[expect(clippy::disallowed_methods, reason = "a test is the only writer, so its own length bounds the queue")]
        let (requests, queue) = mpsc::unbounded_channel();
        let (length_sender, length) = watch::channel(0);
        let (paused, pause) = watch::channel(false);
        let record = Arc::new(Mutex::new(Vec::new()));
        let mut request = Request::new(UnboundedReceiverStream::new(queue));
        for (name, value) in metadata {
            let name: MetadataKey<Ascii> = name.parse().expect("a metadata key");
            let value: MetadataValue<Ascii> = value.parse().expect("a metadata value");
            request.metadata_mut().append(name, value);
        }
        let reader = tokio::spawn(read(channel, request, Arc::clone(&record), length_sender, pause));
        Self { requests: Some(requests), record, length, read: 0, paused, reader: Some(reader) }
    }

    /// Sends a create.
    pub fn create(&self, request: WatchCreateRequest) {
        self.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) });
    }

    /// Sends a create and waits for its answer, which must confirm the watch.
    pub async fn created(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.create(request);
        let response = self.next().await;
        assert!(response.created && !response.canceled && response.events.is_empty(), "not created: {response:?}");
        response
    }

    /// Sends a cancel.
    pub fn cancel(&self, watch_id: i64) {
        let request = WatchCancelRequest { watch_id };
        self.send(WatchRequest { request_union: Some(RequestUnion::CancelRequest(request)) });
    }

    /// Asks for progress.
    pub fn progress(&self) {
        let request = WatchProgressRequest {};
        self.send(WatchRequest { request_union: Some(RequestUnion::ProgressRequest(request)) });
    }

    /// Sends any request.
    pub fn send(&self, request: WatchRequest) {
        // If the stream has ended, the test's next expectation shows it.
        let _delivered = self.requests.as_ref().expect("the sending side is open").send(request);
    }

    /// Stops reading, so that the connection's window fills and the server cannot write.
    pub fn pause(&self) {
        self.paused.send_replace(true);
    }

    /// Reads again.
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Closes the sending side; the server may continue.
    pub fn half_close(&mut self) {
        self.requests = None;
    }

    /// The next response.
    pub async fn next(&mut self) -> WatchResponse {
        self.next_recorded().await.response
    }

    /// The next response with its time.
    pub async fn next_recorded(&mut self) -> Recorded {
        match self.take_within(patience()).await {
            Some(recorded) => recorded,
            None if self.has_ended() => {
                panic!("the stream ended: {:?}; before that: {}", self.ended().await, self.shape())
            }
            None => panic!("no response within {:?}; before that: {}", patience(), self.shape()),
        }
    }

    /// The next response; `None` if `deadline` passes or the stream ends first.
    pub async fn take_within(&mut self, deadline: Duration) -> Option<Recorded> {
        let (wanted, mut length) = (self.read + 1, self.length.clone());
        let came = tokio::time::timeout(deadline, length.wait_for(|length| *length >= wanted)).await;
        // An error in the inner result means that the reader is gone, but it may have left the response.
        if came.is_err() || self.record.lock().len() < wanted {
            return None;
        }
        let recorded = self.record.lock()[self.read].clone();
        self.read += 1;
        Some(recorded)
    }

    /// Fails if anything comes within [`quiet_time`].
    pub async fn expect_silence(&mut self) {
        if let Some(recorded) = self.take_within(quiet_time()).await {
            panic!("expected nothing, not {:?}", recorded.response);
        }
    }

    /// Takes responses until one satisfies the condition, and returns that one. Those before it are in
    /// [`Self::record`].
    pub async fn until(&mut self, mut condition: impl FnMut(&WatchResponse) -> bool) -> WatchResponse {
        loop {
            let response = self.next().await;
            if condition(&response) {
                return response;
            }
        }
    }

    /// Takes responses until the stream has had an event of this revision or a later one, or such progress; none if it
    /// has already had that.
    pub async fn until_revision(&mut self, revision: i64) {
        let had = self.record.lock()[..self.read].iter().any(|recorded| reaches(&recorded.response, revision));
        if !had {
            self.until(|response| reaches(response, revision)).await;
        }
    }

    /// All responses so far, including those already taken.
    pub fn record(&self) -> Vec<Recorded> {
        self.record.lock().clone()
    }

    /// Whether the server has ended the stream.
    pub fn has_ended(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the server ends the stream. Returns how it ended.
    pub async fn ended(&mut self) -> Ended {
        let reader = self.reader.take().expect("the end is asked for once");
        tokio::time::timeout(patience(), reader)
            .await
            .unwrap_or_else(|_| panic!("the stream did not end; so far: {}", self.shape()))
            .expect("the reader does not panic")
    }

    /// A summary of the responses for messages.
    fn shape(&self) -> String {
        let record = self.record();
        let last: Vec<_> = record.iter().rev().take(5).rev().map(|recorded| shorten(&recorded.response)).collect();
        format!("{} responses, the last: [{}]", record.len(), last.join(", "))
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

/// A create for one key, from now on.
pub fn key(key: impl AsRef<[u8]>) -> WatchCreateRequest {
    WatchCreateRequest { key: kv::bytes(key), ..Default::default() }
}

/// A create for all keys with this prefix, from now on.
pub fn prefix(prefix: impl AsRef<[u8]>) -> WatchCreateRequest {
    let range_end = kv::prefix_end(&prefix);
    let key = match prefix.as_ref() {
        [] => Bytes::from_static(b"\0"),
        prefix => kv::bytes(prefix),
    };
    WatchCreateRequest { key, range_end, ..Default::default() }
}

/// Whether clients would take the response as progress.
pub fn is_progress(response: &WatchResponse) -> bool {
    response.events.is_empty()
        && !response.created
        && !response.canceled
        && response.compact_revision == 0
        && header_revision(response) != 0
}

/// The revision in the header; 0 without a header.
pub fn header_revision(response: &WatchResponse) -> i64 {
    response.header.as_ref().map_or(0, |header| header.revision)
}

/// The revision of an event.
pub fn event_revision(event: &etcd_relay::pb::mvccpb::Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

/// The event revisions in a response.
pub fn revisions(response: &WatchResponse) -> Vec<i64> {
    response.events.iter().map(event_revision).collect()
}

/// Whether everything up to `revision` has come with this response.
fn reaches(response: &WatchResponse, revision: i64) -> bool {
    let last = response.events.last().map(event_revision);
    let complete = !response.fragment;
    last.is_some_and(|last| complete && last >= revision)
        || (is_progress(response) && header_revision(response) >= revision)
}

fn shorten(response: &WatchResponse) -> String {
    let mut text = format!("id {} header {}", response.watch_id, header_revision(response));
    if response.created {
        text.push_str(" created");
    }
    if response.canceled {
        text.push_str(&format!(" canceled {:?} compact {}", response.cancel_reason, response.compact_revision));
    }
    if let (Some(first), Some(last)) = (response.events.first(), response.events.last()) {
        let (first, last) = (event_revision(first), event_revision(last));
        text.push_str(&format!(" {} events {first}..={last}", response.events.len()));
    }
    text
}

async fn read(
    channel: Channel,
    request: Request<UnboundedReceiverStream<WatchRequest>>,
    record: Arc<Mutex<Vec<Recorded>>>,
    length: watch::Sender<usize>,
    mut paused: watch::Receiver<bool>,
) -> Ended {
    let mut client = WatchClient::new(channel).max_decoding_message_size(kv::MAX_MESSAGE);
    let mut responses = client.watch(request).await?.into_inner();
    loop {
        if paused.wait_for(|paused| !*paused).await.is_err() {
            // The stream was dropped.
            return Ok(());
        }
        let Some(response) = responses.message().await? else { break };
        record.lock().push(Recorded { at: Instant::now(), response });
        length.send_modify(|length| *length += 1);
    }
    Ok(())
}
