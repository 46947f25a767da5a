//! Label values of clients' requests and their outcomes: watches, reads, views.
//!
//! Not here: the names of the metrics. Always holds: as in `names`, some code uses each value.

labels! {
    /// Why a watch ended.
    CancelReason as "reason" {
        /// The client canceled it or its stream ended.
        Client = "client",
        /// Its next revision was compacted.
        Compacted = "compacted",
        /// The cluster was replaced or restored.
        Replaced = "replaced",
        /// The client may no longer read the range.
        Denied = "denied",
        /// Upstream cancelled a watch that it depends on.
        Upstream = "upstream",
        /// Its feed on demand ended, because such feeds held more memory than they may.
        FeedEnded = "feed_ended",
        /// The relay is stopping.
        Shutdown = "shutdown",
        /// A fault of the relay; the log says which.
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
        /// The client may not read the range, or its user is not known.
        Denied = "denied",
        /// The relay's own user may not read the range, which is outside every configured feed.
        RelayDenied = "relay_denied",
        /// The stream or the relay has its largest number of watches.
        Limit = "limit",
        /// The client has its largest number of watches, over all its streams.
        ClientLimit = "client_limit",
        /// The range is outside every feed, and feeds on demand are off.
        OutsideFeeds = "outside_feeds",
        /// The upstream cannot watch such a range.
        Unsupported = "unsupported",
        /// The range's feed had no snapshot in time.
        Late = "late",
        /// The range is too large to ask etcd for permission.
        TooLarge = "too_large",
    }
}
labels! {
    /// How a `Range` was answered.
    Read as "outcome" {
        /// From the snapshot, because the client asked for a serializable read.
        Snapshot = "snapshot",
        /// From the snapshot, after upstream confirmed its revision.
        Confirmed = "confirmed",
        /// From a past revision in the history.
        History = "history",
        /// With an error that the relay knew without asking etcd.
        Refused = "refused",
        /// With an error, because the client has too many long reads under way.
        Busy = "busy",
        /// By upstream, because the range is outside every feed.
        ForwardedOutside = "forwarded_outside",
        /// By upstream, because the feed was not ready or not up to date in time.
        ForwardedLate = "forwarded_late",
        /// By upstream, because its progress notifications cannot be trusted.
        ForwardedUntrusted = "forwarded_untrusted",
        /// By upstream, because the client may not read the range, or its permission is not known.
        ForwardedAccess = "forwarded_access",
        /// By upstream, because the relay does not answer this kind of read from memory.
        ForwardedOther = "forwarded_other",
    }
}
labels! {
    /// What etcd answered about a client's permission for a range.
    Check as "outcome" {
        /// The client may read it.
        Granted = "granted",
        /// The client may not read it, or its user is not known.
        Denied = "denied",
        /// There was no answer: etcd could not be asked.
        Unknown = "unknown",
    }
}
labels! {
    /// The directories in etcd that views are made from, under Lainlet's names.
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
    /// How a view is requested.
    Transport as "transport" {
        /// HTTP, as a single answer or as server-sent events.
        Http = "http",
        /// gRPC.
        Grpc = "grpc",
    }
}
labels! {
    /// How a request for a view ended.
    Answer as "answer" {
        /// It was answered, or its stream began.
        Ok = "ok",
        /// The caller may not see it.
        Forbidden = "forbidden",
        /// A parameter is missing or wrong, or the view does not exist.
        Invalid = "invalid",
        /// The view cannot be shown for the cluster as it is.
        Unshowable = "unshowable",
        /// Directories have not been read yet, or a revision was not reached in time.
        NotReady = "not_ready",
    }
}
labels! {
    /// The effect of a key's change on views.
    Effect as "effect" {
        /// Something that views read has changed.
        Visible = "visible",
        /// Everything that views read is as before.
        Invisible = "invisible",
        /// The value cannot be read, and the previous one is kept.
        Refused = "refused",
    }
}
labels! {
    /// The path of a request for keys over HTTP.
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
        /// As requested, or with a stream that began.
        Ok = "ok",
        /// The request is malformed, or asks for too much.
        Invalid = "invalid",
        /// The request names no user that etcd knows.
        Unauthorized = "unauthorized",
        /// The client may not read this.
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
        /// The stream began.
        Start = "start",
        /// The next revision that the reader needed was gone.
        Compacted = "compacted",
        /// The reader wants only the newest values, and was far behind.
        Behind = "behind",
    }
}
