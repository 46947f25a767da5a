//! Lainlet's views: what LAIN's data in etcd looks like to those who ask for it, as JSON and as protobuf.

mod document;
mod json;
