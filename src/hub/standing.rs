//! [`Standing`]: where a feed stands with its upstream, and [`Mark`], against which upstream's answers are checked.
//!
//! Not here: what the feed has, and of which cluster and up to which revision: that is one value too, the snapshot. Changed by the
//! driver alone, but for a [`Doubt`], which anyone raises and the driver settles. Read by all who want to know whether the feed
//! can serve, by `/ready` and by `/debug/state`.
//! Always holds: a standing is read as a whole and changed as a whole, never under a feed's lock; a feed that another cluster's
//! answer has put in doubt does not serve until its driver has asked again.

use std::{sync::Arc, time::SystemTime};

use crate::{telemetry::names, types::Revision};

/// Most bytes of an error that are kept and shown. The text is upstream's, and may be as long as HTTP/2's trailers, 16 MiB.
const MOST_ERROR: usize = 1024;

/// How far a feed is with its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedState {
    /// Reading its first snapshot; serves nobody yet.
    Starting,
    /// Watching.
    Live,
    /// The watch broke; watching again from the next revision. Serves what it has.
    Resuming,
    /// The revisions it needs are gone upstream; reading a new snapshot.
    Resyncing,
    /// Ended after its idle time; serves nobody any more.
    Closed,
}

impl FeedState {
    /// For metrics. A closed feed is gone, so it has none.
    pub(super) const fn label(self) -> Option<names::FeedState> {
        match self {
            Self::Starting => Some(names::FeedState::Starting),
            Self::Live => Some(names::FeedState::Live),
            Self::Resuming => Some(names::FeedState::Resuming),
            Self::Resyncing => Some(names::FeedState::Resyncing),
            Self::Closed => None,
        }
    }
}

/// Whether upstream lets the relay itself read the feed's range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// It does, as far as the relay knows.
    #[default]
    Granted,
    /// The open watch goes on, and the next one would be refused: the feed serves, and the relay is not ready.
    Lost,
    /// It does not: what the feed has may be out of date for ever, so it does not serve.
    Denied,
}

/// Why a feed may not be what its upstream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Who may read what has changed upstream; the relay's own permission may have gone.
    Permission,
    /// An answer came from another cluster.
    Cluster,
    /// The cluster confirmed a revision below one that the feed had before the question: it went back, and that is proof.
    WentBack,
    /// The cluster had something else than the feed at the same revision, which is proof as well.
    Differs,
}

/// What upstream's last error was.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Trouble {
    /// What it said, cut to a KiB.
    pub error: String,
    /// When it said so last.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// Whether upstream has worked since.
    pub over: bool,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Standing {
    /// How far it is.
    pub state: FeedState,
    /// Where the member is that its watch was opened on last.
    pub(super) member: Option<Arc<str>>,
    /// Whether the relay may read it.
    pub permission: Permission,
    /// Whether upstream's progress is believed: then the feed can tell that it is up to date.
    pub trusts_progress: bool,
    /// What the driver has to find out, and of which of the feed's snapshots ([`super::Snapshot::epoch`]) it was said.
    pub(super) doubt: Option<(Doubt, u64)>,
    /// Upstream's last error, if there ever was one.
    pub trouble: Option<Arc<Trouble>>,
}

/// Where a feed stood before upstream was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub(super) epoch: u64,
    pub(super) revision: Revision,
}

impl Standing {
    pub(super) fn new() -> Self {
        Self {
            state: FeedState::Starting,
            member: None,
            permission: Permission::Granted,
            trusts_progress: false,
            doubt: None,
            trouble: None,
        }
    }

    /// Whether the feed can serve: it has a snapshot that upstream has not left behind, of the cluster that answers, and the relay
    /// may read what comes next.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.state, FeedState::Live | FeedState::Resuming)
            && self.permission != Permission::Denied
            && self.doubt.is_none_or(|(doubt, _)| doubt == Doubt::Permission)
    }

    /// Upstream's error, while it lasts.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.trouble.as_ref().filter(|trouble| !trouble.over).map(|trouble| &*trouble.error)
    }

    /// Why clients had better go to another relay, if they had.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        let error = self.error().unwrap_or("no reason is known");
        match self.state {
            FeedState::Live | FeedState::Resuming if !self.is_serving() && self.permission != Permission::Denied => {
                Some("another cluster answers than the one that its data came from".into())
            }
            FeedState::Live | FeedState::Resuming if self.permission == Permission::Granted => None,
            FeedState::Live | FeedState::Resuming => Some(error.into()),
            FeedState::Starting | FeedState::Resyncing | FeedState::Closed => {
                Some(self.error().map_or_else(|| "no snapshot yet".into(), |error| format!("no snapshot: {error}")))
            }
        }
    }

    /// Takes note of an error. What was said before is forgotten.
    pub(super) fn failed(&mut self, error: String) {
        self.trouble = Some(Arc::new(Trouble { error: cut_error(error), at: SystemTime::now(), over: false }));
    }

    /// Upstream works again.
    pub(super) fn recovered(&mut self) {
        if let Some(trouble) = &mut self.trouble
            && !trouble.over
        {
            Arc::make_mut(trouble).over = true;
        }
    }
}

/// An error of upstream's, as much of it as is kept: a KiB.
#[must_use]
pub fn cut_error(error: String) -> String {
    if error.len() <= MOST_ERROR {
        return error;
    }
    let end = (0..=MOST_ERROR).rev().find(|at| error.is_char_boundary(*at)).unwrap_or(0);
    // A text of its own, so that the long one is freed.
    format!("{}…", &error[..end])
}

fn rfc3339<S: serde::Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_kept_as_far_as_it_is_shown() {
        let mut standing = Standing::new();
        standing.failed("no leader".to_owned());
        assert_eq!(standing.error(), Some("no leader"));
        // Its characters end at odd places, so none of them ends at the bound.
        standing.failed(format!("a{}", "é".repeat(MOST_ERROR)));
        let error = standing.error().expect("an error");
        assert!(error.len() <= MOST_ERROR + "…".len() && error.ends_with("éé…"), "{} bytes", error.len());
    }
}
