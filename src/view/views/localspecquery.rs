//! `/v2/localspecquery`: the processes that run on a node, `["<app>/<proc>",…]`, sorted and without duplicates.

use crate::view::{
    directory::Directory,
    document::PodGroup,
    projection::{Absent, Projection, Rows, Shape, Spec},
    views::containers::keys,
    wire,
};

#[derive(Debug)]
pub(super) struct Localspecquery;

static SPEC: Spec = Spec {
    paths: &["/v2/localspecquery", "/v2/localspecwatcher"],
    service: "Localspec",
    directory: Directory::PodGroups,
    parameter: Some("nodeip"),
    absent: Absent::CallersNode,
    suffix: "/",
    watch: false,
    matches_rows: true,
    shape: Shape::List,
    ..Spec::PLAIN
};

impl Projection<PodGroup> for Localspecquery {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn match_keys(&self, group: &PodGroup, each: &mut dyn FnMut(&[u8])) {
        keys(group, |key, _, _| each(key.as_bytes()));
    }

    fn rows(&self, _key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        let mut runs_here = false;
        keys(group, |key, _, _| runs_here |= rows.wants(key.as_bytes()));
        if runs_here {
            let name = format!("{}/{}", group.spec.namespace, group.spec.name);
            let mut message = Vec::new();
            wire::put_delimited(&mut message, 1, name.as_bytes());
            rows.element(name.as_bytes(), &name, message);
        }
    }
}
