//! [`Place`]: the place of a key range in etcd's v2 store: a directory with everything below it, or one key.
//!
//! Not here: requests. Always holds: a place's path is canonical, so that etcd never answers with a redirect.

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::types::{KeyRange, RangeEnd};

/// The characters that are not escaped in a request's path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A directory or a key of the v2 store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The path without a trailing slash; empty for the root.
    path: String,
    /// Whether it means everything below the path, or the path alone.
    is_directory: bool,
}

impl Place {
    /// The place that has exactly the keys of `range`; `None` if there is none.
    pub(super) fn of(range: &KeyRange) -> Option<Self> {
        let start = std::str::from_utf8(range.start()).ok()?;
        if range.is_single() {
            return is_clean(start).then(|| Self { path: start.to_owned(), is_directory: false });
        }
        if *range.end() == RangeEnd::Unbounded {
            // The whole key space, as in `--prefix ""` and as clients write it.
            return matches!(start, "" | "\0").then(|| Self { path: String::new(), is_directory: true });
        }
        let path = start.strip_suffix('/')?;
        let whole = *range == KeyRange::prefix(range.start().clone());
        (whole && (path.is_empty() || is_clean(path))).then(|| Self { path: path.to_owned(), is_directory: true })
    }

    /// The target of a request for it, with `query`.
    pub(super) fn target(&self, query: &str) -> String {
        let recursive = if self.is_directory { "recursive=true&" } else { "" };
        format!("/v2/keys{}?{recursive}{query}", utf8_percent_encode(&self.path, PATH))
    }

    /// The target of a request for a key in or next to it that nobody writes. The answer is short, whatever the place
    /// contains.
    pub(super) fn probe_target(&self) -> String {
        let directory =
            if self.is_directory { &self.path } else { self.path.rsplit_once('/').map_or("", |(up, _)| up) };
        format!("/v2/keys{}/_etcd-relay-probe?quorum=true", utf8_percent_encode(directory, PATH))
    }

    /// Whether listings leave out `key`, because a component of it below the place begins with `_`.
    pub(super) fn hides(&self, key: &str) -> bool {
        let below = key.strip_prefix(&self.path).filter(|_| self.is_directory);
        below.is_some_and(|below| below.starts_with('/') && below.contains("/_"))
    }

    /// Whether the whole place is deleted with the directory `path`.
    pub(super) fn is_within(&self, path: &str) -> bool {
        let below = self.path.strip_prefix(path);
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    }
}

/// The prefix of every key below the directory `path`.
pub(super) fn prefix_of(path: &str) -> Bytes {
    format!("{}/", path.trim_end_matches('/')).into()
}

fn is_clean(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|component| !matches!(component, "" | "." | "..")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: &'static str, end: &'static [u8]) -> Option<String> {
        let range = KeyRange::from_wire(key.into(), Bytes::from_static(end)).expect("a range");
        Place::of(&range).map(|place| place.target("q"))
    }

    #[test]
    fn only_directories_and_keys_are_places() {
        for (key, end, want) in [
            ("/a/", &b"/a0"[..], Some("/v2/keys/a?recursive=true&q")),
            ("/a b/é/", b"/a b/\xc3\xa90", Some("/v2/keys/a%20b/%C3%A9?recursive=true&q")),
            ("/", b"0", Some("/v2/keys?recursive=true&q")),
            ("", b"\0", Some("/v2/keys?recursive=true&q")),
            ("\0", b"\0", Some("/v2/keys?recursive=true&q")),
            ("/a/b", b"", Some("/v2/keys/a/b?q")),
            ("/a?b#c%", b"", Some("/v2/keys/a%3Fb%23c%25?q")),
            ("/a", b"/b", None),
            ("/a", b"\0", None),
            ("/a/", b"/b", None),
            ("a", b"", None),
            ("/", b"", None),
            ("/a/", b"", None),
            ("/a//b", b"", None),
            ("/a/../b", b"", None),
            ("/a/./", b"/a/.0", None),
        ] {
            assert_eq!(place(key, end).as_deref(), want, "{key:?} to {end:?}");
        }
    }

    #[test]
    fn whole_components_are_compared() {
        let place = Place::of(&KeyRange::prefix("/a/b/".into())).expect("a place");
        for (path, within) in
            [("/a/b", true), ("/a", true), ("", true), ("/a/", false), ("/a/bc", false), ("/a/b/c", false)]
        {
            assert_eq!(place.is_within(path), within, "{path}");
        }
        for (key, hidden) in [("/a/b/_c", true), ("/a/b/c/_d/e", true), ("/a/b/c_d", false), ("/a/b", false)] {
            assert_eq!(place.hides(key), hidden, "{key}");
        }
        let hidden = Place::of(&KeyRange::prefix("/_a/".into())).expect("a place");
        assert!(!hidden.hides("/_a/b"), "a key that is requested by its own path is shown");
    }
}
