//! The views' metrics, behind functions named after the events.
//!
//! Names and label values are in `telemetry::names`; the fronts have their own metrics.

use metrics::{counter, gauge};

use super::directory::Directory;
use crate::telemetry::names::{self, Effect};

fn label(directory: Directory) -> &'static str {
    match directory {
        Directory::Config => names::Directory::Config,
        Directory::PodGroups => names::Directory::PodGroups,
        Directory::Depends => names::Directory::Depends,
        Directory::Nodes => names::Directory::Nodes,
    }
    .as_str()
}

/// A key changed.
pub(super) fn change(directory: Directory, effect: Effect) {
    counter!(names::VIEW_CHANGES, names::Directory::LABEL => label(directory), Effect::LABEL => effect.as_str())
        .increment(1);
}

/// A target shows something new.
pub(super) fn version(directory: Directory) {
    counter!(names::VIEW_VERSIONS, names::Directory::LABEL => label(directory)).increment(1);
}

/// Records the size of the kept targets.
pub(super) fn targets(directory: Directory, targets: usize, bytes: usize) {
    gauge!(names::VIEW_TARGETS, names::Directory::LABEL => label(directory)).set(targets as f64);
    gauge!(names::VIEW_BYTES, names::Directory::LABEL => label(directory)).set(bytes as f64);
}

/// Records the number of unreadable values in a directory.
pub(super) fn unreadable(directory: Directory, count: usize) {
    gauge!(names::VIEW_UNREADABLE, names::Directory::LABEL => label(directory)).set(count as f64);
}
