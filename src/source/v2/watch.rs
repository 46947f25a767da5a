//! [`V2Watch`]: turns the reports of a walk into changes of a range of keys.
//!
//! Not here: requests, see `walk`. Always holds: what a watch can no longer report step by step, it reports as
//! compacted. This happens after an interruption during which the store moved on by more than its history, and when a
//! listing shows what no wait reported.

use std::{
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::Instant,
};

use super::{
    Owned,
    answer::Standing,
    copy::{Compared, Comparison},
    link::{Members, Reply},
    walk::{Report, Silence, Walk},
};
use crate::{
    hub::upstream::{Changes, UpstreamError, UpstreamWatch, WatchMessage},
    types::{Header, Revision},
};

/// How many reports a walk may be ahead of its reader.
const AHEAD: usize = 64;

/// How long a listing that equals the copy waits for events of the open wait. A key that was created and deleted again
/// is in no listing. The listing and the wait's answer are on their way at the same time.
const UNDER_WAY: Duration = Duration::from_millis(50);

/// A watch over v2; see the module.
#[derive(Debug)]
pub(super) enum V2Watch {
    Open(Box<Open>),
    /// It could not begin at its position; the header has the store's index. The flag is true once that was reported.
    Gone(Header, bool),
}

/// A watch with a running walk.
#[derive(Debug)]
pub(super) struct Open {
    copy: Owned,
    created: Header,
    reports: mpsc::Receiver<Report>,
    ask: Arc<Notify>,
    walk: AbortHandle,
    /// A listing that is being compared.
    comparison: Option<Comparison>,
    /// A listing that equalled the copy, and when it will be trusted.
    settling: Option<(Revision, Instant, Silence)>,
    /// Nothing comes after the last message.
    over: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.walk.abort();
    }
}

impl V2Watch {
    /// A watch that continues with `copy`, from the wait that begins with `standing` and `first`.
    pub(super) fn new(members: Arc<Members>, copy: Owned, standing: Standing, first: Reply, created: Header) -> Self {
        let (sender, reports) = mpsc::channel(AHEAD);
        let ask = Arc::new(Notify::new());
        let walk = Walk {
            members,
            range: copy.range.clone(),
            place: copy.place.clone(),
            cluster_id: copy.cluster_id,
            walked: copy.walked,
            reported: copy.walked,
            agreed: copy.agreed.clone(),
            ask: ask.clone(),
            reports: sender,
        };
        let walk = tokio::spawn(walk.run(standing, first)).abort_handle();
        Self::Open(Box::new(Open { copy, created, reports, ask, walk, comparison: None, settling: None, over: false }))
    }

    /// A watch that reports at once that its beginning is compacted.
    pub(super) fn gone(created: Header) -> Self {
        Self::Gone(created, false)
    }
}

#[async_trait]
impl UpstreamWatch for V2Watch {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        match self {
            Self::Gone(header, reported) => {
                if std::mem::replace(reported, true) {
                    return Err(ended());
                }
                Ok(compacted(header.revision))
            }
            Self::Open(open) => open.next().await,
        }
    }

    async fn request_progress(&mut self) -> Result<(), UpstreamError> {
        match self {
            Self::Open(open) => open.ask.notify_one(),
            Self::Gone(..) => {}
        }
        Ok(())
    }

    fn trusts_progress(&self) -> bool {
        true
    }

    /// Each progress report costs a listing.
    fn has_cheap_progress(&self) -> bool {
        false
    }

    fn created(&self) -> Header {
        match self {
            Self::Open(open) => open.created,
            Self::Gone(created, _) => *created,
        }
    }
}

impl Open {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        loop {
            if let Some(message) = self.compare().await {
                return Ok(message);
            }
            let settles_at = self.settling.map(|(_, at, _)| at);
            // Cancel safe: everything else is done at once. A report is handled before the time is up.
            let report = tokio::select! {
                biased;
                report = self.reports.recv() => report,
                () = until(settles_at) => {
                    let Some((index, _, silence)) = self.settling.take() else { continue };
                    self.copy.agree(index, silence);
                    return Ok(WatchMessage::Progress(self.header(index)));
                }
            };
            let Some(report) = report.filter(|_| !self.over) else { return Err(ended()) };
            match report {
                Report::Event(event) => {
                    let index = event.index();
                    if index <= self.copy.revision {
                        // A listing showed the directory after this event, and did not show its effect: the key was
                        // created and deleted again.
                        if self.copy.changes(&event).is_empty() {
                            continue;
                        }
                        self.over = true;
                        return Err(UpstreamError::Missed);
                    }
                    if self.settling.is_some_and(|(listed, ..)| index <= listed) {
                        // It was on its way when the listing was made, which has to be made again.
                        self.settling = None;
                        self.ask.notify_one();
                    }
                    let events = self.copy.apply(&event);
                    let header = self.header(index);
                    return Ok(if events.is_empty() {
                        WatchMessage::Progress(header)
                    } else {
                        let changes =
                            Changes { revision: index, events, prev: Vec::new(), received: StdInstant::now() };
                        WatchMessage::Events { header, revisions: vec![changes] }
                    });
                }
                Report::Listed { listing, silence } => {
                    let index = listing.standing.index;
                    // A caller that needs a newer state than this listing shows asks again.
                    if index >= self.copy.revision && (silence == Silence::Unheard || self.settling.is_none()) {
                        self.comparison = Some(Comparison::new(index, silence, listing.listed));
                    }
                }
                Report::Gone(standing) => return Ok(self.lost(standing.index)),
                Report::Failed(error) => {
                    self.over = true;
                    return Err(error);
                }
            }
        }
    }

    /// Finishes the running comparison, if there is one, and returns what follows from it. Cancel safe: it continues
    /// where it stopped.
    async fn compare(&mut self) -> Option<WatchMessage> {
        while let Some(comparison) = &mut self.comparison {
            let (index, silence) = (comparison.revision, comparison.silence);
            let unheard = silence == Silence::Unheard;
            let Some(compared) = self.copy.compare(comparison) else {
                tokio::task::yield_now().await;
                continue;
            };
            self.comparison = None;
            match compared {
                Compared::Same if unheard => {
                    self.settling = None;
                    self.copy.agree(index, silence);
                    return Some(WatchMessage::Progress(self.header(index)));
                }
                Compared::Same => self.settling = Some((index, Instant::now() + UNDER_WAY, silence)),
                // A change that is on its way will be reported, and a caller that waits asks again.
                Compared::PerhapsRefreshed => {}
                Compared::Different if !unheard => {}
                Compared::Different => return Some(self.lost(index)),
            }
        }
        None
    }

    fn header(&self, revision: Revision) -> Header {
        Header { revision, ..self.created }
    }

    fn lost(&mut self, index: Revision) -> WatchMessage {
        self.over = true;
        compacted(index)
    }
}

/// Nothing up to `index` can be reported.
fn compacted(index: Revision) -> WatchMessage {
    WatchMessage::Compacted { compact_revision: index.next() }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn ended() -> UpstreamError {
    UpstreamError::Unavailable("the watch has ended".to_owned())
}
