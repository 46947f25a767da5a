//! [`Contents`]: the content of a set of files at one moment.
//!
//! Not here: the meaning of the content, see `pem`. Always holds: no file of more than [`MOST`] bytes is read; only the
//! bytes decide whether the content has changed, so it makes no difference whether a file is replaced, rewritten or
//! reached through another symbolic link.

use std::{
    collections::BTreeMap,
    fs::File,
    hash::{BuildHasher as _, RandomState},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use super::TlsError;

/// A bundle of all public authorities takes a quarter of a MiB; a large revocation list takes a few MiB.
const MOST: u64 = 32 << 20;

/// Uses a secret of the process, so that the value that is kept to compare keys reveals nothing about them.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The content of some files; see the module.
pub(super) struct Contents(BTreeMap<PathBuf, Vec<u8>>);

/// A hash of the bytes of some files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest(u64);

impl Contents {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// If one cannot be read, or is too large.
    pub(super) fn read<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self, TlsError> {
        let mut contents = BTreeMap::new();
        for path in paths {
            let failed = |cause| TlsError::Read { path: path.to_owned(), cause };
            let mut bytes = Vec::new();
            File::open(path).map_err(failed)?.take(MOST + 1).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() as u64 > MOST {
                return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 32 MiB")));
            }
            contents.insert(path.to_owned(), bytes);
        }
        Ok(Self(contents))
    }

    /// The bytes of one of the files.
    pub(super) fn of(&self, path: &Path) -> &[u8] {
        self.0.get(path).map_or(&[], Vec::as_slice)
    }

    /// A hash of the bytes of these files.
    pub(super) fn digest<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Digest {
        let of: Vec<_> = paths.into_iter().map(|path| (path, self.of(path))).collect();
        Digest(HASHER.hash_one(of))
    }

    /// A hash of the bytes of all files.
    pub(super) fn whole(&self) -> Digest {
        Digest(HASHER.hash_one(&self.0))
    }
}
