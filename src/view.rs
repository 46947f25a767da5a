//! Views: small JSON and protobuf replies made of a few directories in etcd, as Lainlet makes them for LAIN's components.
//!
//! A view is a projection over a feed: it shows the newest state and says so again when that changes. Not here: transports
//! (`front::http::lainlet`, `front::grpc::lainlet`) and events as etcd gives them, which need no view.
//!
//! | file | idea |
//! |---|---|
//! | `lainlet` | a request: which view, who may see what, from which revision on |
//! | `access` | the rules by which a caller's address decides |
//! | `directory` | where in etcd |
//! | `document` | a value, read |
//! | `engine`, `index` | a directory's documents, and the targets that a change concerns |
//! | `target`, `select` | one selection of one view, shared by all who asked for it |
//! | `listing`, `payload` | its rows in order, and the forms in which they are sent |
//! | `projection`, `views` | what a view is, and each of them |
//! | `json`, `wire` | JSON as Go writes it, protobuf as Go reads it |
//!
//! Always holds: a change is read once, made into rows once for each view that shows it, and rendered once in each form for
//! all who get it; what it costs does not grow with what it leaves alone.

mod access;
mod directory;
mod document;
mod engine;
mod index;
mod json;
mod lainlet;
mod listing;
mod payload;
mod projection;
mod select;
mod stats;
mod target;
mod views;
mod wire;

pub(crate) use self::json::to_json;
pub use self::{
    access::{Trust, Viewer},
    directory::Directory,
    engine::{LastEvent, Refused, Stats},
    lainlet::{Ask, Lainlet, LainletConfig, Refusal, Selected},
    payload::{Kind, Parts, Payload, Version},
    projection::{Absent, Rule, Shape, Spec, ViewError},
    target::Subscription,
};

#[cfg(test)]
mod tests;
