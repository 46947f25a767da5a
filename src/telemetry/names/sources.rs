//! Label values of requests to etcd's members, of what feeds and the audit find there, and of both sides of etcd's v2
//! API.
//!
//! Not here: the names of the metrics. Always holds: as in `names`, some code uses each value.

labels! {
    /// Why a feed read a new snapshot.
    ResyncReason as "reason" {
        /// The next revision was compacted while the feed was away.
        Compacted = "compacted",
        /// A change was reported after subscribers had gone past its revision.
        Missed = "missed",
        /// The cluster has another id.
        ClusterReplaced = "cluster_replaced",
        /// The cluster's revision fell: restored from a backup.
        RevisionFell = "revision_fell",
        /// The cluster has another past than the feed: it was restored from a backup under its old id.
        HistoryChanged = "history_changed",
        /// The audit found that the feed's content differs from etcd's.
        Audit = "audit",
    }
}
labels! {
    /// How an audit of a feed ended.
    Audited as "outcome" {
        /// The feed's content is the same as etcd's.
        Equal = "equal",
        /// The content differs.
        Different = "different",
        /// The feed, etcd or the relay's permission was not available for long enough. The next audit starts from the
        /// beginning.
        Interrupted = "interrupted",
    }
}
labels! {
    /// Why the relay left a member for another one.
    Leave as "reason" {
        /// It did not answer in time, and another member did.
        Late = "late",
        /// It has no leader, and another member has one.
        NoLeader = "no_leader",
        /// It cannot be reached, or answers with an error that another member does not have.
        Failed = "failed",
        /// Its watches do not bring what another member has. Only feeds leave it.
        Behind = "behind",
    }
}
labels! {
    /// Why a directory was listed over etcd's v2 API.
    V2Listing as "reason" {
        /// A feed reads its snapshot.
        Start = "start",
        /// The store moved on by more than its history while a directory was quiet.
        Cleared = "cleared",
        /// Somebody needs to know whether a feed is up to date.
        Asked = "asked",
        /// A read outside every feed.
        Read = "read",
    }
}
labels! {
    /// How a wait on etcd's v2 API ended.
    V2WaitEnd as "end" {
        /// With its event.
        Event = "event",
        /// It was silent for long, and another wait replaced it.
        Hold = "hold",
        /// Without an event: the connection broke, or the answer ended.
        Cut = "cut",
    }
}
labels! {
    /// The kind of a request for keys over etcd's v2 API.
    FacadeRequest as "kind" {
        /// GET and HEAD.
        Read = "read",
        /// A wait or a stream.
        Wait = "wait",
        /// PUT, POST and DELETE.
        Write = "write",
    }
}
labels! {
    /// The outcome of a read of the past for waits over etcd's v2 API.
    FacadePast as "outcome" {
        /// It was read into the history.
        Read = "read",
        /// etcd has compacted it.
        Compacted = "compacted",
        /// etcd could not be asked.
        Failed = "failed",
    }
}
labels! {
    /// The outcome of a read of a feed's past.
    BackfillOutcome as "outcome" {
        /// All that was read is in the history.
        Joined = "joined",
        /// The history has no room for all of it, and does not grow backwards any more.
        Full = "full",
        /// The feed began another history meanwhile, or does not serve.
        Moved = "moved",
        /// etcd has compacted some of it.
        Compacted = "compacted",
        /// etcd did not answer, or the read broke off. It is tried again.
        Failed = "failed",
        /// etcd cannot or will not deliver it in one watch. Each watch that needs it is served by itself.
        Refused = "refused",
    }
}
