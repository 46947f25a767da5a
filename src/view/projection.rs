//! [`Projection`]: the definition of a view. A new view is a new file in `views/` and a line in `views.rs`.
//!
//! Not here: parsing of documents (`document`), how rows form a reply (`listing`, `payload`), and permissions
//! (`access`). Always holds: a projection is pure: the same document and selection give the same rows.

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use smallvec::SmallVec;
use thiserror::Error;

use super::{directory::Directory, json, listing::Row, select::Select, wire};

/// What the fronts and the engine need to know about a view: its names, its parameter, its permissions.
#[derive(Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its HTTP paths, without a slash at the end.
    pub paths: &'static [&'static str],
    /// Its gRPC service in the package `message`.
    pub service: &'static str,
    /// The directory whose keys it shows.
    pub directory: Directory,
    /// The name of its HTTP parameter; `None` for a view that always shows everything.
    pub parameter: Option<&'static str>,
    /// The meaning of an absent parameter.
    pub absent: Absent,
    /// Appended to the parameter to make the match key, unless it already ends so or is `*`.
    pub suffix: &'static str,
    /// Who may request it.
    pub rule: Rule,
    /// Whether it shows one node's part: that of the caller's node, or of `nodename=`.
    pub of_node: bool,
    /// Whether it can be watched.
    pub watch: bool,
    /// Whether targets are matched against each row's own key instead of the cache key.
    pub matches_rows: bool,
    /// How rows form a reply.
    pub shape: Shape,
}

impl Spec {
    /// A view for super callers without a parameter that can be watched. Its names and directory are missing.
    pub(super) const PLAIN: Self = Self {
        paths: &[],
        service: "",
        directory: Directory::PodGroups,
        parameter: None,
        absent: Absent::All,
        suffix: "",
        rule: Rule::Super,
        of_node: false,
        watch: true,
        matches_rows: false,
        shape: Shape::Object,
    };
    /// A view of an app's pods. It is the caller's own app unless the caller may request others. Its names are missing.
    pub(super) const OF_APPS: Self = Self {
        directory: Directory::PodGroups,
        parameter: Some("appname"),
        suffix: "/",
        rule: Rule::AppOrOwn,
        ..Self::PLAIN
    };
}

/// The meaning of an absent parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// `*`: everything.
    All,
    /// An error: the parameter is required.
    Refused,
    /// The caller's node, or else the relay's own address (`--node-ip`), or else the error `empty key`.
    CallersNode,
}

/// Who may request a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Super callers.
    Super,
    /// Callers with access to the app. For `*`, other callers get their own app.
    AppOrOwn,
    /// Callers with access to the app.
    App,
    /// Everyone, but only super callers see secrets.
    Secrets,
}

/// How rows form a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A JSON object with one member per row; a protobuf map with one entry per row.
    Object,
    /// A JSON array and a repeated field with one element per row.
    List,
    /// Like `List` for numbers: the protobuf field is packed.
    PackedList,
    /// A JSON object of arrays with one element per row; a protobuf map whose values have the rows in field 1.
    Groups,
}

/// A view that cannot be shown in the current state of the cluster. The caller should keep its previous data.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
pub enum ViewError {
    /// No pod has an address, or fewer than half of them have one.
    #[error("over half of the containers lost their IPs")]
    ContainersLost,
}

/// The pods behind the rows of a reply, for views that are not shown if too many are lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pods {
    /// All of them.
    pub(super) all: u64,
    /// Those with an address.
    pub(super) alive: u64,
}

impl Pods {
    /// Lainlet's liveness rule: at least half of the pods, and at least one, have an address.
    ///
    /// # Errors
    /// Returns [`ViewError::ContainersLost`] otherwise.
    pub(super) fn mostly_alive(self) -> Result<(), ViewError> {
        if self.all == 0 || 2 * self.alive < self.all { Err(ViewError::ContainersLost) } else { Ok(()) }
    }
}

/// A view over documents of type `D`.
pub(super) trait Projection<D>: Send + Sync + 'static {
    /// Its names and permissions.
    fn spec(&self) -> &'static Spec;

    /// Passes the keys that targets are matched against to `each`, if [`Spec::matches_rows`] is set. Otherwise that is
    /// the cache key.
    fn match_keys(&self, _document: &D, _each: &mut dyn FnMut(&[u8])) {}

    /// Adds the rows of the document under a cache key for `rows.select()`.
    fn rows(&self, key: &[u8], document: &D, rows: &mut Rows<'_>);

    /// Whether a reply with these pods behind its rows may be shown.
    ///
    /// # Errors
    /// Returns a [`ViewError`] if it may not.
    fn verdict(&self, _pods: Pods) -> Result<(), ViewError> {
        Ok(())
    }
}

/// The rows of one document. Of rows with the same name, the one with the last etcd key is shown.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    select: &'a Select,
    /// The cache key, which targets are matched against.
    key: &'a Bytes,
    list: SmallVec<[Row; 1]>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(select: &'a Select, key: &'a Bytes) -> Self {
        Self { select, key, list: SmallVec::new() }
    }

    /// The selection.
    #[must_use]
    pub(super) fn select(&self) -> &Select {
        self.select
    }

    /// Whether rows under this match key are wanted. Call it before making rows if [`Spec::matches_rows`] is set.
    #[must_use]
    pub(super) fn wants(&self, match_key: &[u8]) -> bool {
        self.select.matches(match_key)
    }

    /// Adds an object's member `name`, with the map value of the gRPC reply. Members are sorted by the bytes of their
    /// names.
    pub(super) fn entry(&mut self, name: &[u8], value: &impl Serialize, message: &impl Message) {
        self.encoded_entry(name, value, &message.encode_to_vec());
    }

    /// Like [`Rows::entry`], with the encoded map value.
    pub(super) fn encoded_entry(&mut self, name: &[u8], value: &impl Serialize, message: &[u8]) {
        let mut json = Vec::with_capacity(256);
        json::write_string(&mut json, name);
        json.push(b':');
        json::write_json(&mut json, value);
        self.raw_entry(name, json, message);
    }

    /// Like [`Rows::entry`], with the member's JSON including its name, and the encoded map value.
    pub(super) fn raw_entry(&mut self, name: &[u8], json: Vec<u8>, value: &[u8]) {
        let mut message = Vec::with_capacity(name.len() + value.len() + 12);
        wire::put_entry(&mut message, 1, &wire::text(name), value);
        self.push(None, name, json, message, Pods::default());
    }

    /// Adds an element of an array, sorted by the bytes of `order`, with the encoded element of the gRPC reply's field
    /// 1. That is the whole field, except for packed numbers.
    pub(super) fn element(&mut self, order: &[u8], value: &impl Serialize, message: Vec<u8>) {
        self.push(None, order, json::to_json(value), message, Pods::default());
    }

    /// Adds an element of the array under `group`, sorted by the bytes of `order`.
    pub(super) fn grouped(&mut self, group: &[u8], order: &[u8], value: &impl Serialize, message: &impl Message) {
        let mut element = Vec::new();
        wire::put_delimited(&mut element, 1, &message.encode_to_vec());
        self.push(Some(group), order, json::to_json(value), element, Pods::default());
    }

    /// Adds the pods behind the last row.
    pub(super) fn pods(&mut self, pods: Pods) {
        if let Some(row) = self.list.last_mut() {
            row.pods = pods;
        }
    }

    /// An element of a repeated message field with number 1.
    #[must_use]
    pub(super) fn message_element(message: &impl Message) -> Vec<u8> {
        let mut element = Vec::new();
        wire::put_delimited(&mut element, 1, &message.encode_to_vec());
        element
    }

    pub(super) fn finish(self) -> SmallVec<[Row; 1]> {
        self.list
    }

    fn push(&mut self, group: Option<&[u8]>, order: &[u8], json: Vec<u8>, message: Vec<u8>, pods: Pods) {
        self.list.push(Row::new(group, order, self.key.clone(), json, message, pods));
    }
}
