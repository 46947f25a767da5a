//! Label values of what is asked of etcd's members, of what feeds and the audit find there, and of what is asked and answered over etcd's v2 API.
//!
//! Not here: the names of the metrics. Always holds: as in `names`, each value is given by somebody.

labels! {
    /// Why a feed read a new snapshot.
    ResyncReason as "reason" {
        /// The next revision was compacted while the feed was away.
        Compacted = "compacted",
        /// A change was told after subscribers had gone past it.
        Missed = "missed",
        /// The cluster has another id.
        ClusterReplaced = "cluster_replaced",
        /// The cluster's revision fell: restored from a backup.
        RevisionFell = "revision_fell",
        /// The cluster's past is another one than what the feed had: restored from a backup under its old id.
        HistoryChanged = "history_changed",
        /// The audit found something else in etcd than in the feed.
        Audit = "audit",
    }
}
labels! {
    /// How an audit of a feed ended.
    Audited as "outcome" {
        /// The feed has what etcd has.
        Equal = "equal",
        /// It has something else.
        Different = "different",
        /// The feed, etcd or the relay's permission was not there for long enough; the next audit begins anew.
        Interrupted = "interrupted",
    }
}
labels! {
    /// Why a member was left for another one.
    Leave as "reason" {
        /// It did not answer in the time in which another one did.
        Late = "late",
        /// It has no leader, and another one has.
        NoLeader = "no_leader",
        /// It cannot be reached, or answers with an error that another one does not have.
        Failed = "failed",
        /// Its watches do not bring what another one has. Feeds alone leave it.
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
        /// Someone wants to know whether a feed has all there is.
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
        /// It was silent for long and another took its place.
        Hold = "hold",
        /// Without an event: the connection broke, or the answer ended.
        Cut = "cut",
    }
}
labels! {
    /// What a request for keys over etcd's v2 API is.
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
    /// What came of a read of the past for those who wait over etcd's v2 API.
    FacadePast as "outcome" {
        /// It is in the history now.
        Read = "read",
        /// etcd has compacted it.
        Compacted = "compacted",
        /// etcd could not be asked.
        Failed = "failed",
    }
}
labels! {
    /// What came of a read of a feed's past.
    BackfillOutcome as "outcome" {
        /// All that was read is in the history.
        Joined = "joined",
        /// The history has no room for all of it: it does not grow back any more.
        Full = "full",
        /// The feed began another history meanwhile, or does not serve.
        Moved = "moved",
        /// etcd has compacted some of what was asked for.
        Compacted = "compacted",
        /// etcd did not answer, or broke off. It is tried again.
        Failed = "failed",
        /// etcd cannot or will not tell it in one. Each watch that needs it is served by itself.
        Refused = "refused",
    }
}
