//! Paths of v2 and keys of v3: a path is the key itself, and `PATH/` is the mark of a directory.
//!
//! Always holds: a path from a request is clean: it begins with `/` and has no empty or dot components and no slash at
//! its end. The root is `/`.

use bytes::{Bytes, BytesMut};

use crate::types::KeyRange;

/// Most components of a path that is shown. v3 clients can create deeper keys, v2 clients cannot. A look-up of a path
/// costs at most this many look-ups of keys.
pub(super) const MAX_DEPTH: usize = 128;

/// The range of all keys below a directory, including its own mark.
pub(super) fn kids(path: &[u8]) -> KeyRange {
    let start = mark(path);
    let end = behind(&start);
    KeyRange::from_wire(start, end).expect("`0` comes after `/`")
}

/// The first key after all keys of the directory with this mark.
pub(super) fn behind(mark: &[u8]) -> Bytes {
    let mut end = BytesMut::from(mark);
    // The byte after `/`.
    if let Some(last) = end.last_mut() {
        *last = b'0';
    }
    end.freeze()
}

/// The key that marks a directory.
pub(super) fn mark(path: &[u8]) -> Bytes {
    if path == b"/" { Bytes::from_static(b"/") } else { [path, b"/"].concat().into() }
}

/// The directories above a path, from the top, without the root.
pub(super) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at])
}

/// Whether a component of `path` below `directory` is hidden.
pub(super) fn hides_below(directory: &[u8], path: &[u8]) -> bool {
    let directory = if directory == b"/" { &[][..] } else { directory };
    path.get(directory.len()..).is_some_and(|below| below.windows(2).any(|pair| pair == b"/_"))
}

/// Whether a v3 key has a v2 path: as a key, or with a slash at its end as a directory.
pub(super) fn is_sayable(key: &[u8]) -> bool {
    let path = key.strip_suffix(b"/").unwrap_or(key);
    let Some(path) = path.strip_prefix(b"/") else { return false };
    let mut components = path.split(|byte| *byte == b'/');
    components.by_ref().take(MAX_DEPTH).all(|name| !matches!(name, b"" | b"." | b"..")) && components.next().is_none()
}

/// A path without empty and dot components, as Go's `path.Clean` returns it for an absolute path.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            name => kept.push(name),
        }
    }
    let mut cleaned = Vec::with_capacity(path.len());
    for name in kept {
        cleaned.push(b'/');
        cleaned.extend_from_slice(name);
    }
    if cleaned.is_empty() { b"/".to_vec() } else { cleaned }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_and_cleaned() {
        assert_eq!(ancestors(b"/a/b/c").collect::<Vec<_>>(), [&b"/a"[..], b"/a/b"]);
        assert_eq!(ancestors(b"/a").count() + ancestors(b"/").count(), 0);
        for (path, want) in [("/a//b/", "/a/b"), ("/a/../b/./c", "/b/c"), ("/../..", "/"), ("", "/"), ("//", "/")] {
            assert_eq!(String::from_utf8_lossy(&clean(path.as_bytes())), want, "{path}");
        }
        assert!(is_sayable(b"/a/b") && is_sayable(b"/a/b/") && is_sayable(b"/_a"));
        assert!(is_sayable("/a".repeat(MAX_DEPTH).as_bytes()) && !is_sayable("/a".repeat(MAX_DEPTH + 1).as_bytes()));
        for key in ["", "/", "a", "/a//b", "/a/./b", "/a/..", "//"] {
            assert!(!is_sayable(key.as_bytes()), "{key}");
        }
        assert!(hides_below(b"/", b"/_a") && hides_below(b"/a", b"/a/_b/c") && !hides_below(b"/_a", b"/_a/b"));
    }

    #[test]
    fn the_range_below_a_directory_has_its_mark() {
        assert!(kids(b"/a").contains(b"/a/") && kids(b"/a").contains(b"/a/b") && !kids(b"/a").contains(b"/ab"));
        assert!(kids(b"/").contains(b"/a") && !kids(b"/").contains(b"0"));
    }
}
