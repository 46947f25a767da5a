//! Label values of what clients ask for and what becomes of it: watches, reads, views.
//!
//! Not here: the names of the metrics. Always holds: as in `names`, each value is given by somebody.

labels! {
    /// Why a watch ended.
    CancelReason as "reason" {
        /// The client canceled it or its stream ended.
        Client = "client",
        /// Its next revision is gone.
        Compacted = "compacted",
        /// The cluster was replaced or restored.
        Replaced = "replaced",
        /// The client may no longer read the range.
        Denied = "denied",
        /// Upstream canceled what it needs.
        Upstream = "upstream",
        /// Its feed on demand ended, since such feeds held more than they may.
        FeedEnded = "feed_ended",
        /// The relay stops.
        Shutdown = "shutdown",
        /// A fault of the relay: its log says which.
        Fault = "fault",
    }
}
labels! {
    /// Why a create was refused.
    Refusal as "reason" {
        /// The watch id is in use on the stream.
        DuplicateId = "duplicate_id",
        /// The range is empty.
        EmptyRange = "empty_range",
        /// The start revision is negative.
        NegativeStart = "negative_start",
        /// The client may not read the range, or is not known.
        Denied = "denied",
        /// The relay's own user may not read the range, which is outside every configured feed.
        RelayDenied = "relay_denied",
        /// The stream or the relay has its largest number.
        Limit = "limit",
        /// The client has its largest number, over all its streams.
        ClientLimit = "client_limit",
        /// The range is outside every feed and on-demand feeds are off.
        OutsideFeeds = "outside_feeds",
        /// The upstream cannot follow such a range.
        Unsupported = "unsupported",
        /// The range's feed had no snapshot in time.
        Late = "late",
        /// The range is too large for etcd to be asked about it.
        TooLarge = "too_large",
    }
}
labels! {
    /// How a `Range` was answered.
    Read as "outcome" {
        /// From the snapshot, as the client asked for no more.
        Snapshot = "snapshot",
        /// From the snapshot, after upstream confirmed its revision.
        Confirmed = "confirmed",
        /// From the window of past revisions.
        History = "history",
        /// With an error that the relay knew without asking.
        Refused = "refused",
        /// With an error: the client has too many long reads under way.
        Busy = "busy",
        /// By upstream: outside every feed.
        ForwardedOutside = "forwarded_outside",
        /// By upstream: the feed was not ready or not up to date in time.
        ForwardedLate = "forwarded_late",
        /// By upstream: its progress cannot be trusted.
        ForwardedUntrusted = "forwarded_untrusted",
        /// By upstream: the client may not read the range, or it is not known whether it may.
        ForwardedAccess = "forwarded_access",
        /// By upstream: the relay does not answer this form from memory.
        ForwardedOther = "forwarded_other",
    }
}
labels! {
    /// What etcd said about a client and a range.
    Check as "outcome" {
        /// The client may read it.
        Granted = "granted",
        /// It may not, or is not known.
        Denied = "denied",
        /// Nothing: it could not be asked.
        Unknown = "unknown",
    }
}
labels! {
    /// The directories in etcd that views are made of, under Lainlet's names.
    Directory as "directory" {
        /// `/lain/config/`
        Config = "config",
        /// `/lain/deployd/pod_groups/`
        PodGroups = "podgroup",
        /// `/lain/deployd/depends/pods/`
        Depends = "depends",
        /// `/lain/nodes/nodes/`
        Nodes = "nodes",
    }
}
labels! {
    /// How a view is asked for.
    Transport as "transport" {
        /// HTTP, one answer or server-sent events.
        Http = "http",
        /// gRPC.
        Grpc = "grpc",
    }
}
labels! {
    /// What became of a request for a view.
    Answer as "answer" {
        /// It was answered, or its stream began.
        Ok = "ok",
        /// The caller may not see it.
        Forbidden = "forbidden",
        /// A parameter is missing or wrong, or there is no such thing.
        Invalid = "invalid",
        /// The view cannot be shown as the cluster is.
        Unshowable = "unshowable",
        /// Directories were not read yet, or a revision was not reached in time.
        NotReady = "not_ready",
    }
}
labels! {
    /// What a key's change meant for views.
    Effect as "effect" {
        /// Something that views read is different.
        Visible = "visible",
        /// All that views read is as before.
        Invisible = "invisible",
        /// The value cannot be read; what was there before stays.
        Refused = "refused",
    }
}
labels! {
    /// Which path of the keys over HTTP.
    KeysPath as "path" {
        /// `/v1/keys`
        Keys = "keys",
        /// `/v1/watch`
        Watch = "watch",
    }
}
labels! {
    /// How a request for keys over HTTP was answered.
    KeysAnswer as "answer" {
        /// As it asked, or with a stream that began.
        Ok = "ok",
        /// It cannot be understood, or asks for too much.
        Invalid = "invalid",
        /// It names no user that etcd knows.
        Unauthorized = "unauthorized",
        /// Its client may not read this.
        Forbidden = "forbidden",
        /// The revision is compacted.
        Compacted = "compacted",
        /// The client has as much open as it may.
        Limit = "limit",
        /// etcd or the relay cannot answer now.
        Unavailable = "unavailable",
    }
}
labels! {
    /// Why a stream of keys was sent a snapshot.
    KeysSnapshot as "reason" {
        /// It began.
        Start = "start",
        /// What its reader needed next was gone.
        Compacted = "compacted",
        /// Its reader wants the newest values and was far behind.
        Behind = "behind",
    }
}
