//! etcd's and Lainlet's protocols, generated from `proto/`: messages, clients, and etcd's servers. Byte fields are
//! [`bytes::Bytes`].
//!
//! Not here: anything written by hand. Lints are relaxed here and nowhere else.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    rustdoc::all,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

/// The services of a member's client port, and their messages.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Key-values and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// Elections.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// Locks.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// Lainlet's services and their messages. Maps are sorted, so that equal messages have equal bytes.
pub mod lainlet {
    tonic::include_proto!("message");
}

/// The file descriptors of all of them, encoded, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/protocols.bin"));
