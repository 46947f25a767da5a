//! Label values of TLS, on both sides of the relay.
//!
//! Not here: the names of the metrics. Always holds: as in `names`, some code uses each value.

labels! {
    /// The outcome of a TLS handshake with a client.
    Handshake as "outcome" {
        /// A connection with a new session.
        Full = "full",
        /// A connection that resumes an earlier session.
        Resumed = "resumed",
        /// The client's certificate is missing or was not accepted.
        Refused = "refused",
        /// The client did not continue in time.
        Timeout = "timeout",
        /// Too many handshakes were under way: this was the oldest, or got no place in time.
        Crowded = "crowded",
        /// The client does not speak TLS.
        Plain = "plain",
        /// The client left, does not accept the relay's certificate, or has no version or cipher suite in common with
        /// it.
        Failed = "failed",
    }
}
labels! {
    /// A certificate; of several, the one that expires first.
    TlsCertificate as "certificate" {
        /// The relay's own, for clients.
        Port = "port",
        /// The authorities for clients' certificates.
        PortCa = "port_ca",
        /// The relay's own, for etcd.
        Upstream = "upstream",
        /// The authorities for etcd's certificates, if a file names them.
        UpstreamCa = "upstream_ca",
    }
}
labels! {
    /// The side of the relay on which TLS is used.
    TlsSide as "side" {
        /// Towards clients.
        Port = "port",
        /// Towards etcd.
        Upstream = "upstream",
    }
}
labels! {
    /// The outcome of a change of TLS files.
    Reload as "outcome" {
        /// New handshakes use the new files.
        Taken = "taken",
        /// They cannot be used, and the previous ones stay in use.
        Failed = "failed",
    }
}
