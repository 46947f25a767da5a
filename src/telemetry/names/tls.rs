//! Label values of TLS, on both sides of the relay.
//!
//! Not here: the names of the metrics. Always holds: as in `names`, each value is given by somebody.

labels! {
    /// What came of a TLS handshake with a client.
    Handshake as "outcome" {
        /// A connection with a new session.
        Full = "full",
        /// A connection that goes on with an earlier session.
        Resumed = "resumed",
        /// The client's certificate is missing or not accepted.
        Refused = "refused",
        /// The client did not go on in time.
        Timeout = "timeout",
        /// Too many were under way: it was the oldest, or got no place in time.
        Crowded = "crowded",
        /// The client does not speak TLS.
        Plain = "plain",
        /// The client went away, does not accept the relay's certificate, or has no version or cipher suite in common.
        Failed = "failed",
    }
}
labels! {
    /// A certificate, or the first of several to end.
    TlsCertificate as "certificate" {
        /// The relay's own, for clients.
        Port = "port",
        /// The authorities of clients.
        PortCa = "port_ca",
        /// The relay's own, for etcd.
        Upstream = "upstream",
        /// The authorities of etcd, where a file names them.
        UpstreamCa = "upstream_ca",
    }
}
labels! {
    /// On which side of the relay TLS is.
    TlsSide as "side" {
        /// Towards clients.
        Port = "port",
        /// Towards etcd.
        Upstream = "upstream",
    }
}
labels! {
    /// What came of a change of files.
    Reload as "outcome" {
        /// New handshakes use them.
        Taken = "taken",
        /// They cannot be used; what was read before stays in use.
        Failed = "failed",
    }
}
