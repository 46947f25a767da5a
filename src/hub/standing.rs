//! [`Standing`]: a feed's relation to its upstream, and [`Mark`], against which upstream's answers are checked.
//!
//! Not here: what the feed has, from which cluster and up to which revision. That is one value too, the snapshot. Only
//! the driver changes a standing, except for a [`Doubt`], which anyone may raise and the driver settles. It is read by
//! all who need to know whether the feed can serve, by `/ready` and by `/debug/state`.
//! Always holds: a standing is read and changed as a whole, never under a feed's lock; a feed that another cluster's
//! answer has put in doubt does not serve until its driver has asked upstream again.

use std::{sync::Arc, time::SystemTime};

use crate::{telemetry::names, types::Revision};

/// The most bytes of an error that are kept and shown. The text is upstream's, and may be as long as HTTP/2's trailers,
/// 16 MiB.
const MOST_ERROR: usize = 1024;

/// The state of a feed towards its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedState {
    /// It reads its first snapshot, and does not serve yet.
    Starting,
    /// It watches.
    Live,
    /// The watch broke, and the feed watches again from the next revision. It serves what it has.
    Resuming,
    /// Upstream no longer has the revisions that it needs, so it reads a new snapshot.
    Resyncing,
    /// It has ended, and serves nobody any more.
    Closed,
}

impl FeedState {
    /// The label for metrics. A closed feed is gone, so it has none.
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
    /// It may, as far as the relay knows.
    #[default]
    Granted,
    /// The open watch goes on, but the next one would be refused. The feed serves, and the relay is not ready.
    Lost,
    /// It may not. What the feed has may be out of date forever, so it does not serve.
    Denied,
}

/// Why a feed may not match its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Permissions have changed upstream, and the relay may have lost its own.
    Permission,
    /// An answer came from another cluster.
    Cluster,
    /// The cluster confirmed a revision below one that the feed had before it asked. This proves that the cluster went
    /// back.
    WentBack,
    /// The cluster had other content than the feed at the same revision. This is a proof as well.
    Differs,
}

/// Upstream's last error.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Trouble {
    /// Its message, cut to a KiB.
    pub error: String,
    /// When it last occurred.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// Whether upstream has worked since.
    pub over: bool,
}

/// A feed's relation to its upstream; see the module.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its state.
    pub state: FeedState,
    /// The address of the member on which its watch was last opened.
    pub(super) member: Option<Arc<str>>,
    /// Whether the relay may read it.
    pub permission: Permission,
    /// Whether upstream's progress is trusted. Only then can the feed know that it is up to date.
    pub trusts_progress: bool,
    /// What the driver has to check, and which snapshot of the feed ([`super::Snapshot::epoch`]) the doubt is about.
    pub(super) doubt: Option<(Doubt, u64)>,
    /// Upstream's last error, if there was one.
    pub trouble: Option<Arc<Trouble>>,
}

/// A feed's position before upstream was asked.
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

    /// Whether the feed can serve: it has a snapshot from which it can continue, of the cluster that answers, and the
    /// relay may read the changes that follow.
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

    /// Why clients should prefer another relay, if they should.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        let error = self.error().unwrap_or("the reason is not known");
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

    /// Notes an error, which replaces the previous one.
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

/// An error from upstream, cut to the KiB that is kept.
#[must_use]
pub fn cut_error(error: String) -> String {
    if error.len() <= MOST_ERROR {
        return error;
    }
    let end = (0..=MOST_ERROR).rev().find(|at| error.is_char_boundary(*at)).unwrap_or(0);
    // A new text, so that the long one is freed.
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
        // Its characters end at odd offsets, so none of them ends at the bound.
        standing.failed(format!("a{}", "é".repeat(MOST_ERROR)));
        let error = standing.error().expect("an error");
        assert!(error.len() <= MOST_ERROR + "…".len() && error.ends_with("éé…"), "{} bytes", error.len());
    }
}
