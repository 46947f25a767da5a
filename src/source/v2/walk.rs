//! [`Walk`]: the task that makes one wait after the other, and handles what a wait cannot report.
//!
//! Not here: what events mean; `watch`, which receives them, knows the keys. v2 has no heartbeat, and a wait can miss
//! its event because the member got a snapshot, lost its leader, or is gone. So when a wait has been silent for a
//! while, another one is opened beside it from the same position; etcd then finds in its history what was missed.
//! Streams (`stream=true`) are not used: after a burst, and when they begin in the past, they fall silent for good.
//! Always holds: events are reported in order, each once, and as soon as they were read; only one wait is open at a
//! time, except while it is being replaced.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use metrics::counter;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    Listing, Opened,
    answer::{Event, Standing},
    copy::Agreed,
    link::{Members, Reply},
    list, open,
    place::Place,
    standing,
};
use crate::{
    hub::upstream::UpstreamError,
    telemetry::names::{self, V2Listing, V2WaitEnd},
    types::{KeyRange, Revision},
};

/// A wait that ends without an event sooner than this is not repeated at once.
const SHORT: Duration = Duration::from_secs(1);

/// The reports of a walk. Nothing comes after `Gone` and `Failed`.
#[derive(Debug)]
pub(super) enum Report {
    Event(Box<Event>),
    /// The directory as it was at some moment.
    Listed {
        listing: Listing,
        silence: Silence,
    },
    /// What comes after the position can no longer be reported.
    Gone(Standing),
    Failed(UpstreamError),
}

/// What a listing says about changes that no wait has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nothing: they may still be on their way.
    Unknown,
    /// The member that was listed has an open wait, so it will have reported them a while later.
    Settles,
    /// There are none: this member's wait was open for long and has returned nothing.
    Unheard,
}

/// What a walk follows, and its position.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) members: Arc<Members>,
    pub(super) range: KeyRange,
    pub(super) place: Place,
    pub(super) cluster_id: u64,
    /// Every change up to here was reported, or it was found that there is none.
    pub(super) walked: Revision,
    /// The last change that was reported.
    pub(super) reported: Revision,
    pub(super) agreed: Arc<Agreed>,
    /// Notified when somebody needs the current state of the directory.
    pub(super) ask: Arc<Notify>,
    pub(super) reports: mpsc::Sender<Report>,
}

/// An open wait.
struct Wait {
    reply: Reply,
    /// The store's index when it was registered.
    registered: Revision,
    since: Instant,
    /// Whether it replaced a wait that was silent.
    repeated: bool,
}

/// Other requests under way.
#[derive(Default)]
struct UnderWay {
    opening: Option<Opening>,
    /// The end of an answer whose event was reported. Its connection is reused if the end comes in time.
    ending: Option<BoxFuture<'static, ()>>,
    /// A listing, and whether it is read because the history does not reach back.
    listing: Option<(BoxFuture<'static, Result<Listing, UpstreamError>>, bool)>,
}

struct Opening {
    future: BoxFuture<'static, Result<Opened, UpstreamError>>,
    /// The position from which it was opened.
    after: Revision,
    /// Whether it is to replace a silent wait.
    repeats: bool,
}

/// Why a walk ends.
enum End {
    /// Nobody receives its reports any more.
    Unheard,
    Gone(Standing),
    Failed(UpstreamError),
}

impl Walk {
    /// Runs from the first wait until it cannot continue.
    pub(super) async fn run(mut self, standing: Standing, first: Reply) {
        let wait = self.wait(standing, first, false);
        let last = match Box::pin(self.walk(wait)).await {
            End::Unheard => return,
            End::Gone(standing) => Report::Gone(standing),
            End::Failed(error) => Report::Failed(error),
        };
        // If nobody receives any more, the last report is not needed.
        let _ = self.reports.send(last).await;
    }

    async fn walk(&mut self, first: Wait) -> End {
        let hold = self.members.config().hold;
        let mut wait = Some(first);
        let mut under_way = UnderWay::default();
        loop {
            let clears = matches!(under_way.listing, Some((_, true)));
            if wait.is_none() && under_way.opening.is_none() && !clears {
                under_way.opening = Some(self.open(self.walked));
            }
            let silent_at = wait.as_ref().map_or_else(Instant::now, |wait| wait.since + hold);
            let is_quiet = wait.is_some() && under_way.opening.is_none() && !clears;
            let ask = self.ask.clone();
            // Cancel safe: what is under way stays where it is, and the part of a line that was read is kept.
            let step = tokio::select! {
                line = next_line(wait.as_mut()) => self.line(line, &mut wait, &mut under_way).await,
                () = ended_answer(&mut under_way.ending) => {
                    under_way.ending = None;
                    Ok(())
                }
                (opened, after, repeats) = opened(&mut under_way.opening) => {
                    under_way.opening = None;
                    self.opened(opened, after, repeats, &mut wait, &mut under_way)
                }
                (listing, clears) = listed(&mut under_way.listing) => {
                    under_way.listing = None;
                    self.listed(listing, clears, wait.as_ref(), &mut under_way).await
                }
                () = ask.notified(), if under_way.listing.is_none() => {
                    under_way.listing = Some((self.list(self.members.preferred(), V2Listing::Asked), false));
                    Ok(())
                }
                () = tokio::time::sleep_until(silent_at), if is_quiet => {
                    under_way.opening = Some(self.repeat());
                    Ok(())
                }
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Reports the event that a wait ended with.
    async fn line(
        &mut self,
        line: Result<bytes::Bytes, UpstreamError>,
        wait: &mut Option<Wait>,
        under_way: &mut UnderWay,
    ) -> Result<(), End> {
        let Some(Wait { reply, registered, since, repeated }) = wait.take() else { return Ok(()) };
        let text = line.map_err(|error| {
            ended(V2WaitEnd::Cut);
            End::Failed(self.members.failed(reply.member, error))
        })?;
        if text.is_empty() {
            ended(V2WaitEnd::Cut);
            let error = || UpstreamError::Unavailable("it ends waits as soon as they are opened".to_owned());
            return if since.elapsed() < SHORT {
                Err(End::Failed(self.members.failed(reply.member, error())))
            } else {
                Ok(())
            };
        }
        ended(V2WaitEnd::Event);
        let event = serde_json::from_slice::<Event>(&text).map_err(|error| {
            End::Failed(UpstreamError::Protocol(format!("an event that cannot be parsed: {error}")))
        })?;
        let index = event.index();
        // The end of the answer has mostly come as well. If not, neither this event nor the next wait is delayed for
        // it.
        let mut ending = reply.recycle(self.members.clone()).boxed();
        if (&mut ending).now_or_never().is_none() {
            under_way.ending = Some(ending);
        }
        if index <= self.reported {
            // The wait that this one replaced has reported it.
            return Ok(());
        }
        if repeated && index <= registered {
            counter!(names::V2_REPAIRED).increment(1);
        }
        self.reported = index;
        self.walked = self.walked.max(index);
        self.report(Report::Event(Box::new(event))).await
    }

    fn opened(
        &mut self,
        opened: Result<Opened, UpstreamError>,
        after: Revision,
        repeats: bool,
        wait: &mut Option<Wait>,
        under_way: &mut UnderWay,
    ) -> Result<(), End> {
        match opened.map_err(End::Failed)? {
            Opened::Wait(standing, reply) => {
                self.check(&standing)?;
                if standing.index < self.walked {
                    // It may be behind, or the cluster may have gone back. That is checked where watches begin.
                    return Err(self.failed("it is behind"));
                }
                if wait.replace(self.wait(standing, *reply, repeats)).is_some() {
                    ended(V2WaitEnd::Hold);
                }
            }
            Opened::Cleared(standing) => {
                self.check(&standing)?;
                if after < self.walked {
                    // An event came meanwhile, and its index is the position to wait from.
                } else if let Some(settled) = self.agreed.settled(self.walked) {
                    self.walked = settled;
                    under_way.opening = Some(self.open(settled));
                } else if let Some(wait) = wait {
                    // From the same member. Another one has what this one may not have reported, if it has frozen.
                    under_way.listing = Some((self.list(wait.reply.member, V2Listing::Cleared), true));
                } else {
                    return Err(End::Gone(standing));
                }
            }
        }
        Ok(())
    }

    async fn listed(
        &mut self,
        listing: Result<Listing, UpstreamError>,
        clears: bool,
        wait: Option<&Wait>,
        under_way: &mut UnderWay,
    ) -> Result<(), End> {
        let listing = listing.map_err(End::Failed)?;
        self.check(&listing.standing)?;
        let index = listing.standing.index;
        let silence = match wait {
            Some(wait) if wait.reply.member == listing.member && clears => Silence::Unheard,
            Some(wait) if wait.reply.member == listing.member => Silence::Settles,
            // The wait has returned an event, which is the position to wait from. What came after it is not known.
            None if clears => return Ok(()),
            _ => Silence::Unknown,
        };
        if index < self.walked {
            if clears {
                return Err(self.failed("its index went backwards"));
            }
            // An event that came meanwhile says more.
            return Ok(());
        }
        self.report(Report::Listed { listing, silence }).await?;
        if silence == Silence::Unheard {
            self.walked = index;
            under_way.opening = Some(self.open(index));
        }
        Ok(())
    }

    fn open(&self, after: Revision) -> Opening {
        let (members, place) = (self.members.clone(), self.place.clone());
        Opening { future: async move { open(&members, &place, after).await }.boxed(), after, repeats: false }
    }

    /// Opens another wait, after a read that the cluster agreed on.
    fn repeat(&self) -> Opening {
        let (members, place, after) = (self.members.clone(), self.place.clone(), self.walked);
        let future = async move {
            standing(&members, members.preferred(), &place.probe_target()).await?;
            open(&members, &place, after).await
        };
        Opening { future: future.boxed(), after, repeats: true }
    }

    fn list(&self, member: usize, why: V2Listing) -> BoxFuture<'static, Result<Listing, UpstreamError>> {
        let (members, place, range) = (self.members.clone(), self.place.clone(), self.range.clone());
        async move { list(&members, member, &place, &range, why).await }.boxed()
    }

    fn wait(&self, standing: Standing, reply: Reply, repeated: bool) -> Wait {
        Wait { reply, registered: standing.index, since: Instant::now(), repeated }
    }

    fn check(&self, standing: &Standing) -> Result<(), End> {
        if standing.cluster_id == self.cluster_id { Ok(()) } else { Err(self.failed("another cluster answers")) }
    }

    fn failed(&self, why: &str) -> End {
        End::Failed(UpstreamError::Unavailable(why.to_owned()))
    }

    async fn report(&self, report: Report) -> Result<(), End> {
        self.reports.send(report).await.map_err(|_| End::Unheard)
    }
}

/// The line that ends an open wait. Cancel safe.
async fn next_line(wait: Option<&mut Wait>) -> Result<bytes::Bytes, UpstreamError> {
    match wait {
        Some(wait) => wait.reply.line().await,
        None => std::future::pending().await,
    }
}

/// The wait that is being opened, with its position and whether it repeats another one. Cancel safe.
async fn opened(opening: &mut Option<Opening>) -> (Result<Opened, UpstreamError>, Revision, bool) {
    match opening {
        Some(opening) => ((&mut opening.future).await, opening.after, opening.repeats),
        None => std::future::pending().await,
    }
}

/// The end of an answer. Cancel safe.
async fn ended_answer(ending: &mut Option<BoxFuture<'static, ()>>) {
    match ending {
        Some(ending) => ending.await,
        None => std::future::pending().await,
    }
}

/// The same for a listing.
async fn listed<T>(future: &mut Option<(BoxFuture<'static, T>, bool)>) -> (T, bool) {
    match future {
        Some((future, clears)) => (future.await, *clears),
        None => std::future::pending().await,
    }
}

fn ended(how: V2WaitEnd) {
    counter!(names::V2_WAITS, V2WaitEnd::LABEL => how.as_str()).increment(1);
}
