//! [`V2Watch`]: what a walk tells, as the changes of a range of keys.
//!
//! Not here: requests, see `walk`. Always holds: what a watch can no longer tell step by step, it tells as compacted. That is so
//! after a cut during which the store moved on by more than its history, and where a listing shows what no wait told.

use std::{sync::Arc, time::Instant};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
};

use super::{
    Owned,
    answer::Standing,
    copy::Compared,
    link::{Members, Reply},
    walk::{Told, Walk},
};
use crate::{
    hub::upstream::{Changes, UpstreamError, UpstreamWatch, WatchMessage},
    types::{Header, Revision},
};

/// What a walk may be ahead of who reads.
const AHEAD: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) enum V2Watch {
    Open(Box<Open>),
    /// It could not begin where it was to: the header says where the store stands. True once that was told.
    Gone(Header, bool),
}

/// A watch that a walk tells.
#[derive(Debug)]
pub(super) struct Open {
    copy: Owned,
    created: Header,
    told: mpsc::Receiver<Told>,
    ask: Arc<Notify>,
    walk: AbortHandle,
    /// Nothing comes after what was given last.
    over: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.walk.abort();
    }
}

impl V2Watch {
    /// A watch that goes on with `copy`, told by the wait that `standing` and `first` are the begin of.
    pub(super) fn new(members: Arc<Members>, copy: Owned, standing: Standing, first: Reply, created: Header) -> Self {
        let (tell, told) = mpsc::channel(AHEAD);
        let ask = Arc::new(Notify::new());
        let walk = Walk {
            members,
            range: copy.range.clone(),
            place: copy.place.clone(),
            cluster_id: copy.cluster_id,
            walked: copy.walked,
            agreed: copy.agreed.clone(),
            ask: ask.clone(),
            tell,
        };
        let walk = tokio::spawn(walk.run(standing, first)).abort_handle();
        Self::Open(Box::new(Open { copy, created, told, ask, walk, over: false }))
    }

    /// A watch that says at once that its beginning is compacted.
    pub(super) fn gone(created: Header) -> Self {
        Self::Gone(created, false)
    }
}

#[async_trait]
impl UpstreamWatch for V2Watch {
    async fn next(&mut self) -> Result<WatchMessage, UpstreamError> {
        match self {
            Self::Gone(header, told) => {
                if std::mem::replace(told, true) {
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

    /// Each costs a listing.
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
            // Cancel safe: all else is done at once.
            let Some(told) = self.told.recv().await.filter(|_| !self.over) else { return Err(ended()) };
            match told {
                Told::Event(event) => {
                    let index = event.index();
                    if index <= self.copy.revision {
                        // A listing showed the directory after it, and this was not to be seen there: made and gone again.
                        if self.copy.changes(&event).is_empty() {
                            continue;
                        }
                        return Ok(self.lost(self.copy.revision));
                    }
                    let events = self.copy.apply(&event);
                    let header = self.header(index);
                    return Ok(if events.is_empty() {
                        WatchMessage::Progress(header)
                    } else {
                        let changes = Changes { revision: index, events, prev: Vec::new(), received: Instant::now() };
                        WatchMessage::Events { header, revisions: vec![changes] }
                    });
                }
                Told::Listed { listing, unheard } => {
                    let index = listing.standing.index;
                    if index < self.copy.revision {
                        continue;
                    }
                    match self.copy.compare(index, &listing.listed, unheard) {
                        Compared::Same => return Ok(WatchMessage::Progress(self.header(index))),
                        // What is under way will be told; whoever waits asks again.
                        Compared::PerhapsRefreshed => {}
                        Compared::Different if !unheard => {}
                        Compared::Different => return Ok(self.lost(index)),
                    }
                }
                Told::Gone(standing) => return Ok(self.lost(standing.index)),
                Told::Failed(error) => {
                    self.over = true;
                    return Err(error);
                }
            }
        }
    }

    fn header(&self, revision: Revision) -> Header {
        Header { revision, ..self.created }
    }

    fn lost(&mut self, index: Revision) -> WatchMessage {
        self.over = true;
        compacted(index)
    }
}

/// Nothing up to `index` can be told.
fn compacted(index: Revision) -> WatchMessage {
    WatchMessage::Compacted { compact_revision: index.next() }
}

fn ended() -> UpstreamError {
    UpstreamError::Unavailable("the watch has ended".to_owned())
}
