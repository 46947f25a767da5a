//! [`Projection`]: what a view is. A new view is one new file in `views/` and one line in `views.rs`.
//!
//! Not here: how documents are read (`document`), how rows become a reply (`listing`, `payload`), who may see it (`access`).
//! Always holds: a projection is pure: the same document and selection give the same rows.

use bytes::Bytes;
use prost::Message;
use serde::Serialize;
use smallvec::SmallVec;
use thiserror::Error;

use super::{directory::Directory, json, listing::Row, select::Select, wire};

/// What the fronts and the engine need to know of a view: its names, its parameter, who may ask.
#[derive(Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its HTTP paths, without a slash at the end.
    pub paths: &'static [&'static str],
    /// Its gRPC service in the package `message`.
    pub service: &'static str,
    /// Whose keys it shows.
    pub directory: Directory,
    /// The name of its HTTP parameter; `None` for a view that always shows everything.
    pub parameter: Option<&'static str>,
    /// What an absent parameter stands for.
    pub absent: Absent,
    /// Put behind the parameter to make the match key, unless it ends so already or is `*`.
    pub suffix: &'static str,
    /// Who may ask.
    pub rule: Rule,
    /// Whether it shows one node's part, of the caller's node unless told otherwise (`nodename=`).
    pub of_node: bool,
    /// Whether it can be watched.
    pub watch: bool,
    /// Whether targets are matched against each row's own key rather than against the cache key.
    pub matches_rows: bool,
    /// How rows make a reply.
    pub shape: Shape,
}

impl Spec {
    /// A view for super callers that has no parameter and can be watched. Its names and directory are still to be said.
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
    /// A view of the pods of an app, which is the caller's own unless it may ask for others. Its names are still to be said.
    pub(super) const OF_APPS: Self = Self {
        directory: Directory::PodGroups,
        parameter: Some("appname"),
        suffix: "/",
        rule: Rule::AppOrOwn,
        ..Self::PLAIN
    };
}

/// What an absent parameter stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// `*`: everything.
    All,
    /// Nothing: it must be there.
    Refused,
    /// The caller's node, else the relay's own address (`--node-ip`), else the error `empty key`.
    CallersNode,
}

/// Who may ask for a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Super callers.
    Super,
    /// Whoever passes for the app; with `*` others get their own app.
    AppOrOwn,
    /// Whoever passes for the app.
    App,
    /// Super callers for secrets, which others do not see; all else is open to everyone.
    Secrets,
}

/// How rows make a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A JSON object with a member a row; a protobuf map with an entry a row.
    Object,
    /// A JSON array and a repeated field with an element a row.
    List,
    /// As `List`, of numbers: the protobuf field is packed.
    PackedList,
    /// A JSON object of arrays with an element a row; a protobuf map whose values have the rows in their field 1.
    Groups,
}

/// A view that cannot be shown, with the cluster as it is: the caller is to keep what it had.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
pub enum ViewError {
    /// No pod, or fewer than half of the pods, have an address.
    #[error("over half of the containers lost their IPs")]
    ContainersLost,
}

/// Pods behind the rows of a reply, for views that are not shown when too many are lost.
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
    /// [`ViewError::ContainersLost`] otherwise.
    pub(super) fn mostly_alive(self) -> Result<(), ViewError> {
        if self.all == 0 || 2 * self.alive < self.all { Err(ViewError::ContainersLost) } else { Ok(()) }
    }
}

/// A view over documents of type `D`.
pub(super) trait Projection<D>: Send + Sync + 'static {
    /// Its names and rules.
    fn spec(&self) -> &'static Spec;

    /// Tells the keys that targets are matched against, where [`Spec::matches_rows`]; otherwise it is the cache key.
    fn match_keys(&self, _document: &D, _each: &mut dyn FnMut(&[u8])) {}

    /// Gives the rows that the document under a cache key has for `rows.select()`.
    fn rows(&self, key: &[u8], document: &D, rows: &mut Rows<'_>);

    /// Whether a reply of rows with these pods behind them may be shown.
    ///
    /// # Errors
    /// [`ViewError`], where it may not.
    fn verdict(&self, _pods: Pods) -> Result<(), ViewError> {
        Ok(())
    }
}

/// The rows of one document. Rows with the same name: the one of the last etcd key is shown.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    select: &'a Select,
    /// Where targets are matched against it: the cache key.
    key: &'a Bytes,
    list: SmallVec<[Row; 1]>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(select: &'a Select, key: &'a Bytes) -> Self {
        Self { select, key, list: SmallVec::new() }
    }

    /// What is asked for.
    #[must_use]
    pub(super) fn select(&self) -> &Select {
        self.select
    }

    /// Whether rows under this match key are wanted. To be asked before rows are made, where [`Spec::matches_rows`].
    #[must_use]
    pub(super) fn wants(&self, match_key: &[u8]) -> bool {
        self.select.matches(match_key)
    }

    /// An object's member `name`, with the map value of the gRPC reply. In order of the names' bytes.
    pub(super) fn entry(&mut self, name: &[u8], value: &impl Serialize, message: &impl Message) {
        self.encoded_entry(name, value, &message.encode_to_vec());
    }

    /// As [`Rows::entry`], with the map value encoded.
    pub(super) fn encoded_entry(&mut self, name: &[u8], value: &impl Serialize, message: &[u8]) {
        let mut json = Vec::with_capacity(256);
        json::write_string(&mut json, name);
        json.push(b':');
        json::write_json(&mut json, value);
        self.raw_entry(name, json, message);
    }

    /// As [`Rows::entry`], with the member's JSON, name included, and the encoded map value.
    pub(super) fn raw_entry(&mut self, name: &[u8], json: Vec<u8>, value: &[u8]) {
        let mut message = Vec::with_capacity(name.len() + value.len() + 12);
        wire::put_entry(&mut message, 1, &wire::text(name), value);
        self.push(None, name, json, message, Pods::default());
    }

    /// An array's element, in order of `order`'s bytes, with the encoded element of the gRPC reply's field 1: all of the field,
    /// but for packed numbers.
    pub(super) fn element(&mut self, order: &[u8], value: &impl Serialize, message: Vec<u8>) {
        self.push(None, order, json::to_json(value), message, Pods::default());
    }

    /// An element of the array under `group`, in order of `order`'s bytes.
    pub(super) fn grouped(&mut self, group: &[u8], order: &[u8], value: &impl Serialize, message: &impl Message) {
        let mut element = Vec::new();
        wire::put_delimited(&mut element, 1, &message.encode_to_vec());
        self.push(Some(group), order, json::to_json(value), element, Pods::default());
    }

    /// The pods behind the row that was given last.
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
