//! [`Contents`]: what a set of files has at one moment.
//!
//! Not here: what it means, see `pem`. Always holds: no file of more than [`MOST`] bytes is read; whether two moments differ is told from
//! the bytes alone, so a file that is replaced, rewritten or behind another symbolic link is all the same.

use std::{
    collections::BTreeMap,
    fs::File,
    hash::{BuildHasher as _, RandomState},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use super::TlsError;

/// A bundle of all public authorities has a quarter of a MiB; a large revocation list has some.
const MOST: u64 = 32 << 20;

/// With a secret of the process, so that what is kept to compare keys tells nothing about them.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// See the module.
pub(super) struct Contents(BTreeMap<PathBuf, Vec<u8>>);

/// Stands for the bytes of some files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest(u64);

impl Contents {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// Where one cannot be read, or is too large.
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

    /// Stands for the bytes of these files.
    pub(super) fn digest<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> Digest {
        let of: Vec<_> = paths.into_iter().map(|path| (path, self.of(path))).collect();
        Digest(HASHER.hash_one(of))
    }

    /// Stands for the bytes of all.
    pub(super) fn whole(&self) -> Digest {
        Digest(HASHER.hash_one(&self.0))
    }
}
