//! [`ReadyBoard`]: what the process still waits for before it is ready to serve clients.
//!
//! Not liveness: a process that waits is alive. Sources and feeds hold it; `/ready`, `/health` and gRPC health read it.
//! Always holds: the process is ready exactly while there is no hold. A hold ends when it is dropped, even by a panic.

use std::{collections::BTreeMap, fmt, sync::Arc};

use tokio::sync::watch;

/// Shared between the parts that delay readiness and those that report it. A new board is ready.
#[derive(Clone, Debug)]
pub struct ReadyBoard {
    board: Arc<watch::Sender<Board>>,
}

#[derive(Debug, Default)]
struct Board {
    last: u64,
    holds: BTreeMap<u64, String>,
}

impl ReadyBoard {
    /// A board without holds.
    #[must_use]
    pub fn new() -> Self {
        Self { board: Arc::new(watch::Sender::new(Board::default())) }
    }

    /// Makes the process not ready until the returned hold is dropped. `reason` is shown to the operator.
    #[must_use = "readiness is held only as long as the hold lives"]
    pub fn hold(&self, reason: impl Into<String>) -> Hold {
        let mut id = 0;
        self.board.send_modify(|board| {
            board.last += 1;
            id = board.last;
            board.holds.insert(id, reason.into());
        });
        Hold { id, board: self.board.clone() }
    }

    /// Whether there is no hold.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.board.borrow().holds.is_empty()
    }

    /// The reasons of all holds, oldest first; empty if the process is ready.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        self.board.borrow().holds.values().cloned().collect()
    }

    /// Waits until [`ReadyBoard::is_ready`] is `ready`. Cancel safe.
    pub async fn wait_for(&self, ready: bool) {
        let mut board = self.board.subscribe();
        // This fails only if the sender is gone, and `self` has one.
        let _ = board.wait_for(|board| board.holds.is_empty() == ready).await;
    }
}

impl Default for ReadyBoard {
    fn default() -> Self {
        Self::new()
    }
}

/// One reason for not being ready. It is removed when this is dropped.
pub struct Hold {
    id: u64,
    board: Arc<watch::Sender<Board>>,
}

impl Hold {
    /// Replaces the reason that is shown.
    pub fn explain(&self, reason: impl Into<String>) {
        self.board.send_modify(|board| {
            board.holds.insert(self.id, reason.into());
        });
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.board.send_modify(|board| {
            board.holds.remove(&self.id);
        });
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_only_while_nobody_holds() {
        let board = ReadyBoard::new();
        assert!(board.is_ready());
        let first = board.hold("feed a");
        let second = board.hold("feed b");
        first.explain("feed a: no leader");
        assert_eq!(board.reasons(), ["feed a: no leader", "feed b"]);
        drop(first);
        assert!(!board.is_ready());
        let waiting = board.wait_for(true);
        drop(second);
        waiting.await;
        assert!(board.is_ready() && board.reasons().is_empty());
    }
}
