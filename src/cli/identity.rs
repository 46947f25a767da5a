//! [`identity`]: who the relay is to etcd, from a name and a file with a password.
//!
//! Called for `serve`, which has flags for the two, and for `grpc-proxy start`, which has the variables of these flags alone: etcd's proxy has no such
//! flag. Always holds: a password never comes from the command line, which other processes can read.

use std::{fs, path::PathBuf};

use super::Exit;
use crate::source::Identity;

/// The variable for the name, and the one for the file.
pub(super) const VARIABLES: (&str, &str) = ("ETCD_RELAY_UPSTREAM_USER", "ETCD_RELAY_UPSTREAM_PASSWORD_FILE");

/// The identity; none where neither is given.
pub(super) fn identity(user: Option<String>, file: Option<PathBuf>) -> Result<Option<Identity>, Exit> {
    let (user, file) = match (user, file) {
        (Some(user), Some(file)) => (user, file),
        (None, None) => return Ok(None),
        _ => return Err(Exit::Usage(format!("{} and {} go together: set both or none", VARIABLES.0, VARIABLES.1))),
    };
    let text = fs::read_to_string(&file)
        .map_err(|error| Exit::Usage(format!("--upstream-password-file: cannot read {}: {error}", file.display())))?;
    let password = text.lines().next().unwrap_or_default().to_owned();
    if user.is_empty() || password.is_empty() {
        return Err(Exit::Usage(
            "--upstream-user and the first line of --upstream-password-file must not be empty".to_owned(),
        ));
    }
    Ok(Some(Identity { user, password }))
}
