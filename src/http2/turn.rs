//! [`Turn`]: limits how long a connection keeps its thread before the thread's other connections continue.
//!
//! The work of a turn is in `connection`. Always holds: whatever a peer sends and however many streams it has, a turn
//! ends [`Limits::TURN`] after it began, except for the step under way. The clock is read only now and then, because
//! reading it costs a good part of a delivery.

use tokio::time::Instant;

use super::limits::Limits;

/// Small steps between two readings of the clock; together they take about 50 µs.
const LOOK_EVERY: u32 = 16;

/// The turn of a connection; see the module.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// When the first step of the turn was taken.
    began: Option<Instant>,
    steps: u32,
    over: bool,
    /// A change of windows has been passed on to all streams in this turn, which visits each of them.
    pub(super) has_widened: bool,
}

impl Turn {
    /// Called before each step: a frame, the run of a stream, or dropping a stream. Returns false if the step must wait
    /// for another turn.
    pub(super) fn step(&mut self) -> bool {
        let Some(began) = self.began else {
            self.began = Some(Instant::now());
            return !self.over;
        };
        self.steps += 1;
        if self.steps >= LOOK_EVERY {
            self.steps = 0;
            self.over |= began.elapsed() >= Limits::TURN;
        }
        !self.over
    }

    /// Marks the current step as possibly long, like a call of a handler, so the clock is read before the next one.
    pub(super) fn weigh(&mut self) {
        self.began.get_or_insert_with(Instant::now);
        self.steps = LOOK_EVERY;
    }

    /// Ends the turn.
    pub(super) fn end(&mut self) {
        self.over = true;
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_ends_when_its_time_is_over_and_the_clock_is_looked_at_now_and_then() {
        let mut turn = Turn::default();
        assert!(turn.step());
        tokio::time::advance(Limits::TURN).await;
        assert_eq!((0..1000).take_while(|_| turn.step()).count() + 1, LOOK_EVERY as usize);
        assert!(turn.is_over() && !turn.step());

        let mut turn = Turn::default();
        turn.weigh();
        tokio::time::advance(Limits::TURN).await;
        assert!(!turn.step(), "the clock is read after a long step");
    }
}
