//! Shared by the tests of views: a target of one view, created and changed as the engine does it. Also tests of all
//! views together.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use bytes::Bytes;

use super::specs;
use crate::view::{
    document::Document,
    payload::{Kind, Version},
    projection::{Pods, Projection, Rows, ViewError},
    select::{Match, Select},
    target::Shown,
};

/// What a view shows of the documents that are put.
pub(super) struct Showing<D: 'static> {
    view: &'static dyn Projection<D>,
    shown: Shown,
}

impl<D: Document> Showing<D> {
    /// The whole view.
    pub(super) fn all(view: &'static dyn Projection<D>) -> Self {
        Self::of(view, None)
    }

    /// The part of one node.
    pub(super) fn of_node(view: &'static dyn Projection<D>, node: &str) -> Self {
        Self::of(view, Some(node.into()))
    }

    fn of(view: &'static dyn Projection<D>, node: Option<Box<str>>) -> Self {
        let select = Select { spec: view.spec(), keys: Match::All, node, public: false };
        let verdict = |pods: Pods| view.verdict(pods);
        let shown = Shown::new(select, std::iter::empty(), &verdict, Instant::now());
        Self { view, shown }
    }

    pub(super) fn put(&mut self, key: &str, json: &str) {
        let document = D::decode(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
        let select = self.shown.target.select.clone();
        let cache_key = Bytes::copy_from_slice(key.as_bytes());
        let mut rows = Rows::new(&select, &cache_key);
        self.view.rows(&cache_key, &document, &mut rows);
        let rows = rows.finish().into_iter().map(Arc::new).collect();
        self.replace(|shown, key| shown.replace(&key, rows, Kind::Update, Instant::now()), key);
    }

    pub(super) fn delete(&mut self, key: &str) {
        self.replace(|shown, key| shown.replace(&key, Default::default(), Kind::Delete, Instant::now()), key);
    }

    fn replace(&mut self, replace: impl FnOnce(&mut Shown, Bytes), key: &str) {
        replace(&mut self.shown, Bytes::copy_from_slice(key.as_bytes()));
        self.shown.publish(&|pods| self.view.verdict(pods));
    }

    fn version(&self) -> Arc<Version> {
        self.shown.target.version()
    }

    /// The JSON that is shown.
    pub(super) fn json(&self) -> String {
        let version = self.version();
        let payload = version.body.as_ref().expect("the view can be shown");
        String::from_utf8(payload.json().to_vec()).expect("text")
    }

    /// Why nothing is shown, if so.
    pub(super) fn error(&self) -> Option<ViewError> {
        self.version().body.as_ref().err().copied()
    }
}

/// The gRPC reply that is shown.
pub(super) fn decode<M: prost::Message + Default>(showing: &Showing<impl Document>) -> M {
    let version = showing.version();
    let payload = version.body.as_ref().expect("the view can be shown");
    M::decode(&*payload.message().to_vec()).expect("a reply")
}

#[test]
fn no_two_views_have_a_path_or_a_service_in_common() {
    let specs = specs();
    assert_eq!(specs.len(), 14);
    let services: BTreeSet<_> = specs.iter().map(|spec| spec.service).collect();
    let paths: BTreeSet<_> = specs.iter().flat_map(|spec| spec.paths).collect();
    // `localspecquery` has two paths.
    assert_eq!((services.len(), paths.len()), (14, 15));
    assert!(paths.iter().all(|path| path.starts_with("/v2/") && !path.ends_with('/')), "{paths:?}");
}
