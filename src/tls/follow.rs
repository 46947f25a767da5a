//! [`follow`]: reads files again whenever they change, and applies their content.
//!
//! Files are polled and not subscribed to: Kubernetes mounts them behind symbolic links that it swaps, and some file
//! systems report no changes. Not here: what is done with the content.
//! Always holds: a change is noticed within [`LOOK`] and the time of reading; content that cannot be used is logged
//! once, counted at each check, and changes nothing.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use metrics::counter;
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    TlsError,
    files::{Contents, Digest},
};
use crate::telemetry::names::{self, Reload, TlsSide};

/// Time between two checks. Certificates are renewed days before they expire; somebody may be waiting for a new
/// revocation list.
const LOOK: Duration = Duration::from_secs(3);
/// A certificate and its key are replaced one after the other. So files that do not match are read again before this
/// counts as a failure.
const AGAIN: (usize, Duration) = (3, Duration::from_millis(100));

/// Checks forever, if there is a file to check; spawn it as a task. `last` is the digest of what is in use, and `take`
/// gets content that differs from it.
pub(super) async fn follow<'a>(
    paths: impl Iterator<Item = &'a Path>,
    mut last: Digest,
    side: TlsSide,
    mut take: impl FnMut(&Contents) -> Result<(), TlsError>,
) {
    let paths: Vec<PathBuf> = paths.map(Path::to_owned).collect();
    if paths.is_empty() {
        return;
    }
    let count = |reload: Reload| {
        counter!(names::TLS_RELOADS, TlsSide::LABEL => side.as_str(), Reload::LABEL => reload.as_str()).increment(1);
    };
    let mut told: Option<String> = None;
    loop {
        sleep(LOOK).await;
        let mut failure = None;
        for _ in 0..AGAIN.0 {
            let of = paths.clone();
            let Ok(read) = spawn_blocking(move || Contents::read(of.iter().map(PathBuf::as_path))).await else {
                return;
            };
            let taken = match read {
                Ok(contents) if contents.whole() == last => {
                    failure = None;
                    break;
                }
                Ok(contents) => take(&contents).map(|()| contents.whole()),
                Err(error) => Err(error),
            };
            match taken {
                Ok(digest) => {
                    last = digest;
                    failure = None;
                    count(Reload::Taken);
                    tracing::info!(side = side.as_str(), "Applied changed TLS files");
                    break;
                }
                Err(error) => failure = Some(error.to_string()),
            }
            sleep(AGAIN.1).await;
        }
        if let Some(error) = &failure {
            count(Reload::Failed);
            if told.as_ref() != Some(error) {
                tracing::error!(
                    side = side.as_str(),
                    error,
                    "Cannot use changed TLS files, keeping what was read before"
                );
            }
        }
        told = failure;
    }
}
