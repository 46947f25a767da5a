//! [`Listing`]: a directory as JSON, made in one walk over the keys below it.
//!
//! v3 sorts keys by their bytes, so the keys below a directory are neighbours, and each directory is opened and closed
//! once. v2 sorts each directory by name. The order differs if a name continues with a byte lower than a slash. In that
//! case the order of the children is recorded when their directory ends, and the whole text is reordered once at the
//! end (`ordered`). Caching is in `listings`. Always holds: there is no recursion, however deep the tree is. Each byte
//! is copied at most once. Of hidden content, only as much is read as determines the age of its directory.

use std::{ops::Range, time::SystemTime};

use bytes::Bytes;

use super::{
    answer::Node,
    ordered::{Ordered, Reordered},
    path::{behind, is_sayable, mark},
    tree::{LOOKED, of_mark},
};
use crate::types::{KeyValue, Revision};

/// See the module.
#[derive(Debug)]
pub(super) struct Listing {
    out: Vec<u8>,
    recursive: bool,
    now: SystemTime,
    /// The listed directory, followed by the open directories below it.
    open: Vec<Open>,
    /// Number of remembered children: those of open directories, and those whose order was recorded.
    children: usize,
    /// The directories whose children must be reordered.
    reordered: Vec<Reordered>,
    /// A remaining time was shown, so the text becomes outdated.
    pub(super) ticks: bool,
}

/// A directory that is being shown or skipped.
#[derive(Debug)]
struct Open {
    /// Its path with a slash at the end.
    mark: Bytes,
    /// The content of its mark, which comes before everything below it.
    node: Option<Node>,
    /// The first revision of anything below it.
    created: Option<Revision>,
    is_shown: bool,
    /// Its content is shown.
    lists: bool,
    /// Its beginning has been written.
    begun: bool,
    /// Number of keys below it that were read.
    looked: usize,
    /// The position where its text begins.
    from: usize,
    children: Vec<Child>,
}

/// A child that was shown.
#[derive(Debug)]
struct Child {
    path: Bytes,
    is_directory: bool,
    text: Range<usize>,
}

impl Listing {
    /// The listing of an existing directory.
    pub(super) fn of(path: &[u8], recursive: bool) -> Self {
        let out = br#"{"action":"get","node":"#.to_vec();
        let root = Open::new(mark(path), true, true, out.len());
        let (now, open, reordered) = (SystemTime::now(), vec![root], Vec::new());
        Self { out, recursive, now, open, children: 0, reordered, ticks: false }
    }

    /// Length of the text so far, in bytes.
    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    /// Approximate memory use, including what completing it will need.
    pub(super) fn memory(&self) -> usize {
        let ordered = if self.reordered.is_empty() { 0 } else { self.out.len() };
        self.out.capacity() + ordered + self.children * size_of::<Child>()
    }

    /// Where to continue with relevant keys: those below a directory with hidden children are not relevant once its age
    /// is known.
    pub(super) fn goes_on_at(&self) -> Option<Bytes> {
        let open = self.open.last().filter(|open| !open.lists && (open.node.is_some() || open.looked >= LOOKED))?;
        Some(behind(&open.mark))
    }

    /// Adds the next key below the directory, including its mark.
    pub(super) fn add(&mut self, kv: &KeyValue) {
        let key = kv.key_bytes();
        while self.open.len() > 1 && self.open.last().is_some_and(|open| !key.starts_with(&open.mark)) {
            self.end();
        }
        if !is_sayable(&key) {
            // A directory may have a million of them.
            self.open.last_mut().into_iter().for_each(|open| open.looked += 1);
            return;
        }
        // The directories between the last open one and the key.
        while let Some(open) = self.open.last().filter(|open| open.lists) {
            let from = open.mark.len();
            let Some(len) = key[from..].iter().position(|byte| *byte == b'/') else { break };
            let is_shown = key[from] != b'_';
            let at = if is_shown { self.child() } else { self.out.len() };
            let lists = is_shown && self.recursive;
            self.open.push(Open::new(key.slice(..=from + len), is_shown, lists, at));
        }
        let Some(open) = self.open.last_mut() else { return };
        open.looked += 1;
        open.is_from(kv.create_revision);
        if key == open.mark {
            open.node = Some(of_mark(key.slice(..key.len() - 1), kv));
        } else if open.lists && key[open.mark.len()] != b'_' {
            let node = Node::file(kv);
            self.ticks |= node.expiry.is_some();
            let from = self.child();
            node.put_head(&mut self.out, self.now);
            node.put_tail(&mut self.out);
            self.shown(key, false, from);
        }
    }

    /// The whole text, which still has to be reordered.
    pub(super) fn finish(mut self) -> Ordered {
        while !self.open.is_empty() {
            self.end();
        }
        self.out.extend_from_slice(b"}\n");
        Ordered::new(self.out, self.reordered)
    }

    /// Begins a child of the last open directory. Returns where its text begins.
    fn child(&mut self) -> usize {
        self.begin();
        let is_first = self.open.last().is_none_or(|open| open.children.is_empty());
        self.out.extend_from_slice(if is_first { br#","nodes":["# } else { b"," });
        self.out.len()
    }

    fn shown(&mut self, path: Bytes, is_directory: bool, from: usize) {
        let text = from..self.out.len();
        if let Some(open) = self.open.last_mut() {
            open.children.push(Child { path, is_directory, text });
            self.children += 1;
        }
    }

    /// Writes the part of the last open directory before its children.
    fn begin(&mut self) {
        let Some(open) = self.open.last_mut().filter(|open| !open.begun) else { return };
        open.begun = true;
        if open.is_root() {
            self.out.extend_from_slice(br#"{"dir":true"#);
        } else {
            let node = open.node();
            self.ticks |= node.expiry.is_some();
            node.put_head(&mut self.out, self.now);
        }
    }

    /// Closes the last open directory.
    fn end(&mut self) {
        if self.open.last().is_some_and(|open| open.is_shown) {
            self.begin();
        }
        let Some(open) = self.open.pop() else { return };
        let (node, is_root) = (open.node(), open.is_root());
        if let Some(above) = self.open.last_mut() {
            above.is_from(node.created);
        }
        if !open.is_shown {
            return;
        }
        if !open.children.is_empty() {
            self.sort(open.children);
            self.out.push(b']');
        }
        if is_root {
            self.out.push(b'}');
        } else {
            node.put_tail(&mut self.out);
        }
        self.shown(node.path, true, open.from);
    }

    /// Records the order of children by name, if it differs from the order in which they were written. If a file and a
    /// directory have the same name, the directory is kept.
    fn sort(&mut self, mut children: Vec<Child>) {
        if children.windows(2).all(|pair| pair[0].path < pair[1].path) {
            self.children -= children.len();
            return;
        }
        let text = children[0].text.start..self.out.len();
        children.sort_by(|a, b| a.path.cmp(&b.path).then(b.is_directory.cmp(&a.is_directory)));
        children.dedup_by(|later, kept| later.path == kept.path);
        let order = children.into_iter().map(|child| child.text).collect();
        self.reordered.push(Reordered { text, order });
    }
}

impl Open {
    fn new(mark: Bytes, is_shown: bool, lists: bool, from: usize) -> Self {
        Self { mark, node: None, created: None, is_shown, lists, begun: false, looked: 0, from, children: Vec::new() }
    }

    fn is_root(&self) -> bool {
        self.mark.len() == 1
    }

    fn is_from(&mut self, revision: Revision) {
        self.created = Some(self.created.map_or(revision, |created| created.min(revision)));
    }

    /// Without a mark, the indexes are those of its first content.
    fn node(&self) -> Node {
        let created = self.created.unwrap_or(Revision::ZERO);
        let path = self.mark.slice(..self.mark.len() - 1);
        self.node.clone().unwrap_or_else(|| Node::directory(path, created, created, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{front::v2::path::MAX_DEPTH, types::KeyValueFields};

    fn shown(path: &str, recursive: bool, keys: &[(&str, &str)]) -> String {
        let mut keys: Vec<_> = keys.iter().zip(2..).collect();
        keys.sort_by_key(|((key, _), _)| *key);
        let mut listing = Listing::of(path.as_bytes(), recursive);
        for ((key, value), at) in keys {
            listing.add(&KeyValue::new(&KeyValueFields {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Bytes::copy_from_slice(value.as_bytes()),
                create_revision: Revision::new(at),
                mod_revision: Revision::new(at),
                version: 1,
                lease: 0,
            }));
        }
        let mut ordered = listing.finish();
        while !ordered.step(7) {}
        String::from_utf8(ordered.into_text()).expect("text")
    }

    /// The keys that a listing shows, in order; directories end with a slash.
    fn names(path: &str, recursive: bool, keys: &[&str]) -> Vec<String> {
        let keys: Vec<_> = keys.iter().map(|key| (*key, "v")).collect();
        let text = shown(path, recursive, &keys);
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let shown = text.split(r#""key":""#).skip(1).map(|rest| {
            let (key, rest) = rest.split_once('"').expect("an end");
            format!("{key}{}", if rest.starts_with(r#","dir""#) { "/" } else { "" })
        });
        shown.collect()
    }

    #[test]
    fn keys_are_shown_as_a_tree() {
        let keys = [("/s/a/x", "1"), ("/s/a-b", "2"), ("/s/", ""), ("/s/e/", ""), ("/s/_h", "3")];
        assert_eq!(
            shown("/s", true, &keys),
            "{\"action\":\"get\",\"node\":{\"key\":\"/s\",\"dir\":true,\"nodes\":[{\"key\":\"/s/a\",\"dir\":true,\"nodes\":[{\"key\":\"/s/a/x\",\"value\":\"1\",\"modifiedIndex\":2,\"createdIndex\":2}],\"modifiedIndex\":2,\"createdIndex\":2},{\"key\":\"/s/a-b\",\"value\":\"2\",\"modifiedIndex\":3,\"createdIndex\":3},{\"key\":\"/s/e\",\"dir\":true,\"modifiedIndex\":5,\"createdIndex\":5}],\"modifiedIndex\":4,\"createdIndex\":4}}\n"
        );
        assert_eq!(shown("/", true, &[]), "{\"action\":\"get\",\"node\":{\"dir\":true}}\n");
        assert_eq!(
            shown("/", false, &[("/s/a", "1"), ("/s/b", "2")]),
            "{\"action\":\"get\",\"node\":{\"dir\":true,\"nodes\":[{\"key\":\"/s\",\"dir\":true,\"modifiedIndex\":2,\"createdIndex\":2}]}}\n"
        );
    }

    #[test]
    fn children_are_in_the_order_of_their_names_at_each_level() {
        let keys = ["/s/a/x/1", "/s/a/x-1", "/s/a-b", "/s/a", "/s/a.c/d", "/s/b", "/s/10", "/s/9/"];
        let all = [
            "/s/", "/s/10", "/s/9/", "/s/a/", "/s/a/x/", "/s/a/x/1", "/s/a/x-1", "/s/a-b", "/s/a.c/", "/s/a.c/d",
            "/s/b",
        ];
        assert_eq!(names("/s", true, &keys), all, "a key with keys below it is shown as a directory");
        let flat = ["/s/", "/s/10", "/s/9/", "/s/a/", "/s/a-b", "/s/a.c/", "/s/b"];
        assert_eq!(names("/s", false, &keys), flat);
    }

    #[test]
    fn what_is_hidden_or_cannot_be_said_is_left_out() {
        let keys = ["/s/_h/a", "/s/b/_c", "/s/_d", "/s//e", "/s/./f", "/s/g"];
        assert_eq!(names("/s", true, &keys), ["/s/", "/s/b/", "/s/g"]);
        assert_eq!(names("/_s", true, &["/_s/a", "/_s/_b"]), ["/_s/", "/_s/a"], "the directory itself was requested");
    }

    #[test]
    fn what_is_too_deep_costs_nothing() {
        let deep = "/d".repeat(300_000);
        let fits = "/d".repeat(MAX_DEPTH);
        let text = shown("/", true, &[(&deep, "v"), (&fits, "v")]);
        assert_eq!(text.matches("\"key\"").count(), MAX_DEPTH);
    }

    #[test]
    fn each_byte_is_copied_once_however_many_levels_are_in_another_order() {
        const LEVELS: usize = 60;
        let mut keys = Vec::new();
        let mut path = String::new();
        for level in 0..LEVELS {
            keys.push(format!("{path}/d-{level:02}"));
            path.push_str("/d");
        }
        keys.push(format!("{path}/value"));
        let keys: Vec<_> = keys.iter().map(|key| (&**key, "v")).collect();
        let text = shown("/", true, &keys);
        let mut listing = Listing::of(b"/", true);
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        for (key, value) in sorted {
            let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::from(value.to_owned()));
            listing.add(&KeyValue::new(&KeyValueFields { key, value, version: 1, ..KeyValueFields::default() }));
        }
        let mut ordered = listing.finish();
        let steps = 1 + std::iter::repeat_with(|| ordered.step(100)).take_while(|done| !done).count();
        assert!(steps <= text.len() / 100 + 2, "{steps} steps of 100 bytes for {}", text.len());
    }

    #[test]
    fn what_is_below_a_directory_that_is_not_shown_is_passed_over() {
        let add = |listing: &mut Listing, key: &str| {
            let key = Bytes::copy_from_slice(key.as_bytes());
            listing.add(&KeyValue::new(&KeyValueFields { key, version: 1, ..KeyValueFields::default() }));
            listing.goes_on_at()
        };
        let mut listing = Listing::of(b"/", false);
        assert_eq!(add(&mut listing, "/a").as_deref(), None);
        assert_eq!(add(&mut listing, "/marked/").as_deref(), Some(&b"/marked0"[..]));
        for key in 1..LOOKED {
            assert_eq!(
                add(&mut listing, &format!("/unmarked/{key:06}")),
                None,
                "the age of the directory is not known \
                yet"
            );
        }
        assert_eq!(add(&mut listing, "/unmarked/last").as_deref(), Some(&b"/unmarked0"[..]));
        let mut listing = Listing::of(b"/", true);
        assert_eq!(add(&mut listing, "/_hidden/").as_deref(), Some(&b"/_hidden0"[..]));
        assert_eq!(add(&mut listing, "/marked/"), None);
    }
}
