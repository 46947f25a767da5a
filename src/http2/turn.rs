//! [`Turn`]: how long a connection keeps its thread before the thread's other connections go on.
//!
//! Not here: what is done in a turn, see `connection`. Always holds: whatever a peer sent, and however many streams it has, a turn is over
//! [`Limits::TURN`] after it began, but for the one step that is under way; and the clock is looked at only now and then, for a look costs
//! as much as a good part of a delivery.

use tokio::time::Instant;

use super::limits::Limits;

/// Small steps between two looks at the clock: together they take some 50 µs.
const LOOK_EVERY: u32 = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// When its first step was taken.
    began: Option<Instant>,
    steps: u32,
    over: bool,
    /// All streams were told of a change of their windows, which is a look at each of them.
    pub(super) has_widened: bool,
}

impl Turn {
    /// Before a step: a frame that came, a stream's run, a stream that is dropped. False where it is for another turn.
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

    /// The step that is taken now may be long, such as a call of a handler. So the clock is looked at before the next.
    pub(super) fn weigh(&mut self) {
        self.began.get_or_insert_with(Instant::now);
        self.steps = LOOK_EVERY;
    }

    /// No more steps in this turn.
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
        assert!(!turn.step(), "a long step is looked at at once");
    }
}
