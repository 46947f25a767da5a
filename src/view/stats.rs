//! The views' metrics, behind functions named after what happened.
//!
//! Not here: names and label values, see `telemetry::names`; what the fronts count.

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

/// What is kept for those who ask.
pub(super) fn targets(directory: Directory, targets: usize, bytes: usize) {
    gauge!(names::VIEW_TARGETS, names::Directory::LABEL => label(directory)).set(targets as f64);
    gauge!(names::VIEW_BYTES, names::Directory::LABEL => label(directory)).set(bytes as f64);
}

/// How many values of a directory cannot be read now.
pub(super) fn unreadable(directory: Directory, count: usize) {
    gauge!(names::VIEW_UNREADABLE, names::Directory::LABEL => label(directory)).set(count as f64);
}
