//! [`follow`]: has files read again, and what they contain taken, whenever they change.
//!
//! Files are looked at rather than subscribed to: Kubernetes mounts them behind symbolic links that it swaps, some of them on file systems that
//! tell nobody of a change. Not here: what is made of them.
//! Always holds: a change is seen within [`LOOK`] and the time of reading; what cannot be used is logged once, counted at each look, and
//! changes nothing.

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

/// Between two looks. Certificates are renewed days before they end; revocation lists are what somebody waits for.
const LOOK: Duration = Duration::from_secs(3);
/// Who replaces a pair writes one file after the other. So what does not fit is read again before it counts as a failure.
const AGAIN: (usize, Duration) = (3, Duration::from_millis(100));

/// Looks for ever, where there is a file to look at; run it as a task. `last` stands for what is in use, and `take` is given what differs
/// from it.
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
                    tracing::info!(side = side.as_str(), "Took changed TLS files");
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
                    "Cannot use changed TLS files; what was read before stays in use"
                );
            }
        }
        told = failure;
    }
}
