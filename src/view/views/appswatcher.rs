//! `/v2/appswatcher`: the apps that have a process, `{"<app>":{"Appname":"<app>"}}`.

use serde::Serialize;

use crate::{
    pb::lainlet as pb,
    view::{
        directory::Directory,
        document::PodGroup,
        projection::{Projection, Rows, Spec},
    },
};

#[derive(Debug)]
pub(super) struct Appswatcher;

static SPEC: Spec =
    Spec { paths: &["/v2/appswatcher"], service: "Apps", directory: Directory::PodGroups, ..Spec::PLAIN };

#[derive(Serialize)]
struct Info<'a> {
    #[serde(rename = "Appname")]
    name: &'a str,
}

impl Projection<PodGroup> for Appswatcher {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self, _key: &[u8], group: &PodGroup, rows: &mut Rows<'_>) {
        // Each process of the app has a row, and one of them is shown.
        let name = &*group.spec.namespace;
        rows.entry(name.as_bytes(), &Info { name }, &pb::AppInfo { appname: name.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::views::tests::{Showing, decode};

    #[test]
    fn an_app_is_there_once_while_it_has_a_process() {
        let mut apps = Showing::all(&Appswatcher);
        apps.put("a/a.web.w", r#"{"Spec":{"Namespace":"a"}}"#);
        apps.put("b/b.web.w", r#"{"Spec":{"Namespace":"b"}}"#);
        apps.put("a/a.worker.x", r#"{"Spec":{"Namespace":"a"},"Pods":[{}]}"#);
        assert_eq!(apps.json(), r#"{"a":{"Appname":"a"},"b":{"Appname":"b"}}"#);
        let info = |name: &str| (name.to_owned(), pb::AppInfo { appname: name.to_owned() });
        assert_eq!(decode::<pb::AppsReply>(&apps).data, [info("a"), info("b")].into());

        apps.delete("a/a.worker.x");
        assert_eq!(apps.json(), r#"{"a":{"Appname":"a"},"b":{"Appname":"b"}}"#);
        apps.delete("a/a.web.w");
        assert_eq!(apps.json(), r#"{"b":{"Appname":"b"}}"#);
        apps.delete("b/b.web.w");
        assert_eq!(apps.json(), "{}");
    }
}
