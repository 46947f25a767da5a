//! The limit of open files, which is what a relay with many clients meets first.
//!
//! Always holds: the limit is never lowered, and never above what the system's administrator allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that a relay opens beside its clients' connections: upstream, ports, timers. Some dozens, with room.
const OWN_FILES: u64 = 256;

/// Raises this process's limit of open files as far as it may, and tells where that is not enough for `connections`.
pub fn raise_file_limit(connections: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::debug!(%error, ?current, ?maximum, "Cannot raise the limit of open files");
            current
        }
    };
    // No limit at all is enough.
    let Some(files) = raised else { return };
    let wanted = OWN_FILES.saturating_add(connections as u64);
    if files < wanted {
        tracing::warn!(
            files,
            connections,
            "The limit of open files is below the largest number of connections; raise it (ulimit -n, LimitNOFILE=) or \
             lower --max-connections"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        let allowed = getrlimit(Resource::Nofile).maximum;
        raise_file_limit(1);
        assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: allowed, maximum: allowed });
    }
}
