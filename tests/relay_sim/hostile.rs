//! Clients that want more than their share or give nothing back. They have their own addresses.
//!
//! Their own answers are not checked, but those of other clients are. Always holds: each of them ends after a while.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_relay::pb::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchResponse, watch_request::RequestUnion};
use h2::SendStream;
use rand::{Rng, rngs::StdRng};
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::{
    client::{Answer, Client, Windows, frame},
    relay::{Host, Relay},
    watcher::{cancel, say},
};

/// Their address, unless a schedule chooses another one.
pub(crate) const HOST: Host = Host(66);

/// What such a client does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hostile {
    /// Opens watches from now and never reads.
    NeverReads { streams: usize, watches: usize },
    /// Creates watches of the past on many streams and leaves them unread.
    Floods { streams: usize },
    /// The same without a window for even a single byte. (With a small window, h2's client would give up the connection
    /// because of all the small unread frames.)
    Hoards { streams: usize },
    /// Creates and cancels as fast as possible, and reads the answers.
    Churns { rounds: usize },
    /// Sends costly reads all at once and reads no answer.
    Reads { calls: usize },
    /// Opens calls and sends nothing on them.
    HalfOpens { calls: usize },
}

impl Hostile {
    pub(crate) fn random(rng: &mut StdRng) -> Self {
        match rng.random_range(0..5) {
            0 => Self::NeverReads { streams: rng.random_range(1..20), watches: rng.random_range(1..10) },
            1 => Self::Floods { streams: rng.random_range(1..80) },
            2 => Self::Churns { rounds: rng.random_range(1..400) },
            3 => Self::Reads { calls: rng.random_range(1..100) },
            _ => Self::HalfOpens { calls: rng.random_range(1..100) },
        }
    }

    /// Runs with ranges like `wire` and the past from `from` on, and leaves after `life`.
    pub(crate) async fn run(self, relay: Arc<Relay>, host: Host, wire: (Bytes, Bytes), from: i64, life: Duration) {
        let windows = match self {
            Self::Churns { .. } => Windows::WIDE,
            Self::Hoards { .. } => Windows { stream: 0, ..Windows::NARROW },
            _ => Windows::NARROW,
        };
        let Ok(client) = Client::connect(&relay, host, None, windows).await else { return };
        let mut open = Vec::new();
        // Answers and refusals do not matter; open calls are kept.
        let _ = self.act(&client, wire, from, &mut open).await;
        sleep(life).await;
    }

    async fn act(
        self,
        client: &Client,
        wire: (Bytes, Bytes),
        from: i64,
        open: &mut Vec<(SendStream<Bytes>, Answer)>,
    ) -> Result<(), Status> {
        let create = |start_revision| WatchCreateRequest {
            key: wire.0.clone(),
            range_end: wire.1.clone(),
            prev_kv: true,
            start_revision,
            ..WatchCreateRequest::default()
        };
        match self {
            Self::NeverReads { streams, watches } => {
                for _ in 0..streams {
                    let (mut send, answer) = client.open("Watch/Watch").await?;
                    for _ in 0..watches {
                        say(&mut send, RequestUnion::CreateRequest(create(0)))?;
                    }
                    open.push((send, answer));
                }
            }
            Self::Floods { streams } | Self::Hoards { streams } => {
                for number in 0..streams {
                    let (mut send, answer) = client.open("Watch/Watch").await?;
                    // Each with another range, so that no two are served together.
                    let (key, range_end) = (Bytes::from_static(b"a/"), format!("a0{number}").into());
                    say(&mut send, RequestUnion::CreateRequest(WatchCreateRequest { key, range_end, ..create(from) }))?;
                    open.push((send, answer));
                }
            }
            Self::Churns { rounds } => {
                let (mut send, mut answer) = client.open("Watch/Watch").await?;
                for watch_id in 1..=rounds as i64 {
                    say(&mut send, RequestUnion::CreateRequest(WatchCreateRequest { watch_id, ..create(0) }))?;
                    say(&mut send, cancel(watch_id))?;
                    if watch_id % 16 == 0 {
                        while let Ok(Ok(Some(_))) = timeout(Duration::ZERO, answer.message::<WatchResponse>()).await {}
                    }
                }
                open.push((send, answer));
            }
            Self::Reads { calls } => {
                let (key, range_end) = wire.clone();
                let sorted = RangeRequest { key, range_end, sort_order: 2, sort_target: 4, ..RangeRequest::default() };
                for call in 0..calls {
                    let (mut send, answer) = client.open("KV/Range").await?;
                    let revision = if call % 2 == 0 { from } else { 0 };
                    let request = frame(&RangeRequest { revision, ..sorted.clone() });
                    send.send_data(request, true).map_err(|error| Status::unavailable(error.to_string()))?;
                    open.push((send, answer));
                }
            }
            Self::HalfOpens { calls } => {
                for _ in 0..calls {
                    open.push(client.open("KV/Range").await?);
                }
            }
        }
        Ok(())
    }
}
