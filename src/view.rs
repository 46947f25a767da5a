//! Views: small JSON and protobuf replies made from a few directories in etcd, as Lainlet makes them for LAIN's
//! components.
//!
//! A view is a projection of a feed: it shows the newest state, and shows it again when that changes. Transports are in
//! `front::http::lainlet` and `front::grpc::lainlet`. Plain events of etcd need no view.
//!
//! | file | idea |
//! |---|---|
//! | `lainlet` | a request: which view, who may see what, and the required revision |
//! | `access` | the rules, which depend on a caller's address |
//! | `directory` | the directories in etcd |
//! | `document` | a parsed value |
//! | `engine`, `index` | a directory's documents, and the targets that a change affects |
//! | `target`, `select` | one selection of one view, shared by all clients that requested it |
//! | `listing`, `payload` | its rows in order, and the forms in which they are sent |
//! | `projection`, `views` | the definition of a view, and all views |
//! | `json`, `wire` | JSON as Go writes it, protobuf as Go reads it |
//!
//! Always holds: a change is parsed once, made into rows once for each view that shows it, and rendered once in each
//! form for all clients. Its cost does not depend on the data that it does not affect.

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
