//! Errors with their causes on one line, for logs and for clients.
//!
//! Always holds: a cause that an outer error repeats in its own text is not written twice.

use std::{error::Error, iter};

/// An error with its causes.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    with_causes(error.to_string(), error)
}

/// A text for `error`, followed by its causes.
pub(super) fn with_causes(mut text: String, error: &(dyn Error + 'static)) -> String {
    for cause in iter::successors(error.source(), |&error| error.source()) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// The error of HTTP/2 among an error and its causes.
pub(super) fn http2<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a h2::Error> {
    iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}
