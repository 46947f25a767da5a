//! [`identity`]: the etcd user of the relay, from a name and a password file.
//!
//! `serve` has flags for the two. `grpc-proxy start` has only their environment variables, since etcd's proxy has no
//! such flags. Always holds: a password never comes from the command line, which other processes can read.

use std::{fs, path::PathBuf};

use super::Exit;
use crate::source::Identity;

/// The environment variables of the name and of the password file.
pub(super) const VARIABLES: (&str, &str) = ("ETCD_RELAY_UPSTREAM_USER", "ETCD_RELAY_UPSTREAM_PASSWORD_FILE");

/// The identity; `None` if neither value is given.
pub(super) fn identity(user: Option<String>, file: Option<PathBuf>) -> Result<Option<Identity>, Exit> {
    let (user, file) = match (user, file) {
        (Some(user), Some(file)) => (user, file),
        (None, None) => return Ok(None),
        _ => {
            return Err(Exit::Usage(format!(
                "{} and {} belong together: set both or neither",
                VARIABLES.0, VARIABLES.1
            )));
        }
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
