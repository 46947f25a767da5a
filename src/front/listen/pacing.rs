//! [`Pacing`]: asks the connections of a port to leave, one after the other.
//!
//! A client that is asked to leave reconnects elsewhere at once. If all did so at the same moment, the other relays
//! would face a storm. So a stopping port asks connections in random order over a part of the drain time. Unless the
//! relay knows of others, connections that arrive meanwhile are asked after all of these, in a shorter time. If
//! connections have a greatest age, each has its own age, so that clients which came together do not leave
//! together. Some are also asked to leave if the relay has more than its share.
//!
//! How many are asked per second is decided in `crate::fleet`. A connection that is asked to leave sends GOAWAY and its
//! streams end; see `http2` and the users of `listen::leave` and `rpc::Caller::leave`. Always holds: a connection is
//! asked once, and one that arrives when all are asked is asked at once. After a delay, only a few at a time are asked
//! to catch up.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use metrics::counter;
use parking_lot::Mutex;
use rand::Rng as _;
use slab::Slab;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{Drain, age_rate, greatest_age, last_spread},
    rate::Rate,
    telemetry::names::{self, LeaveReason, Port},
};

/// Time between two searches for connections that are too old.
const AGE_STEP: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub struct Pacing {
    port: Port,
    spread: Duration,
    max_age: Option<Duration>,
    /// The origin of the times in the fleet's policies.
    origin: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Slab<Open>,
    /// The places of connections that were not asked yet. The first `leaving` of them are those that a stopping port
    /// asks first, in no order; the others follow, also in no order.
    staying: Vec<usize>,
    leaving: usize,
    /// When each of these reaches its greatest age.
    ages: BTreeSet<(Instant, usize)>,
    phase: Phase,
}

/// Whether the port stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    /// Those that were there at its beginning are asked, and new ones are served.
    Leaving,
    /// All are asked.
    Ending,
}

#[derive(Debug)]
struct Open {
    token: CancellationToken,
    /// Until it is asked: its index in `staying`, and when it is too old.
    staying: Option<(usize, Option<Instant>)>,
}

/// A connection's place. When it is dropped, the connection is no longer asked to leave.
#[derive(Debug)]
pub(in crate::front) struct Place {
    pacing: Arc<Pacing>,
    place: usize,
    token: CancellationToken,
}

impl Pacing {
    /// A port that takes `spread` to ask all of its connections to leave, or less if there are few.
    pub(super) fn new(port: Port, spread: Duration, max_age: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { port, spread, max_age, origin: Instant::now(), state: Mutex::default() })
    }

    /// The number of open connections that were not asked to leave.
    #[must_use]
    pub fn staying(&self) -> usize {
        self.state.lock().staying.len()
    }

    /// Asks any one connection to leave, because the relay has more than its share.
    pub fn ask_one(&self) {
        let token = self.state.lock().let_any_go();
        if let Some(token) = token {
            self.ask(&token, LeaveReason::Share);
        }
    }

    /// Adds a new connection.
    pub(in crate::front) fn join(self: &Arc<Self>) -> Place {
        let token = CancellationToken::new();
        let old = self.max_age.map(|age| Instant::now() + greatest_age(age, rand::rng().random()));
        let mut state = self.state.lock();
        let ending = state.phase == Phase::Ending;
        let place = state.open.insert(Open { token: token.clone(), staying: None });
        if !ending {
            let index = state.staying.len();
            state.staying.push(place);
            state.open[place].staying = Some((index, old));
            state.ages.extend(old.map(|old| (old, place)));
        }
        drop(state);
        if ending {
            token.cancel();
        }
        Place { pacing: self.clone(), place, token }
    }

    /// Asks connections that are too old to leave. Runs forever.
    pub(super) async fn ask_the_old(&self) {
        if self.max_age.is_none() {
            return std::future::pending().await;
        }
        let mut rate = Rate::new(age_rate(0), Duration::ZERO);
        loop {
            tokio::time::sleep(AGE_STEP).await;
            rate.set(age_rate(self.staying()));
            self.ask_while(|now| rate.pass(now), LeaveReason::Age, State::let_oldest_go).await;
        }
    }

    /// Asks the connections that are there now to leave. Those that arrive meanwhile are served.
    pub(super) async fn ask_present(&self) {
        let count = {
            let mut state = self.state.lock();
            state.phase = Phase::Leaving;
            state.leaving = state.staying.len();
            state.leaving
        };
        let mut drain = Drain::new(count, self.spread, self.origin.elapsed());
        let pass = |now| drain.pass(now, self.state.lock().leaving);
        self.ask_while(pass, LeaveReason::Stopping, State::let_leaving_go).await;
    }

    /// Asks all connections to leave: in a short time if those that were there first were asked before.
    pub(super) async fn ask_all(&self) {
        let (count, spread) = {
            let mut state = self.state.lock();
            let spread = match std::mem::replace(&mut state.phase, Phase::Ending) {
                Phase::Running => self.spread,
                Phase::Leaving | Phase::Ending => last_spread(self.spread),
            };
            (state.staying.len(), spread)
        };
        let mut drain = Drain::new(count, spread, self.origin.elapsed());
        let pass = |now| drain.pass(now, self.staying());
        self.ask_while(pass, LeaveReason::Stopping, State::let_any_go).await;
    }

    /// Asks the connections from `next`, each when `pass` permits it, until there are none.
    async fn ask_while(
        &self,
        mut pass: impl FnMut(Duration) -> Result<(), Duration>,
        why: LeaveReason,
        next: impl Fn(&mut State) -> Option<CancellationToken>,
    ) {
        loop {
            while let Err(at) = pass(self.origin.elapsed()) {
                tokio::time::sleep_until(self.origin + at).await;
            }
            let Some(token) = next(&mut self.state.lock()) else { return };
            self.ask(&token, why);
        }
    }

    fn ask(&self, token: &CancellationToken, why: LeaveReason) {
        counter!(names::CONNECTIONS_ASKED_TO_LEAVE, Port::LABEL => self.port.as_str(), LeaveReason::LABEL => why.as_str())
            .increment(1);
        token.cancel();
    }
}

impl State {
    /// Takes any connection that has not been asked.
    fn let_any_go(&mut self) -> Option<CancellationToken> {
        self.let_one_go_of(self.staying.len())
    }

    /// Takes any of those that a stopping port asks first.
    fn let_leaving_go(&mut self) -> Option<CancellationToken> {
        self.let_one_go_of(self.leaving)
    }

    /// Takes any of the first `count`.
    fn let_one_go_of(&mut self, count: usize) -> Option<CancellationToken> {
        let place = (count > 0).then(|| self.staying[rand::rng().random_range(0..count)])?;
        self.let_go(place)
    }

    /// Takes the connection that has been too old for the longest time, if there is one.
    fn let_oldest_go(&mut self) -> Option<CancellationToken> {
        let (_, place) = *self.ages.first().filter(|(at, _)| *at <= Instant::now())?;
        self.let_go(place)
    }

    /// Takes a connection out of `staying`, if it is there.
    fn let_go(&mut self, place: usize) -> Option<CancellationToken> {
        let open = self.open.get_mut(place)?;
        let (index, old) = open.staying.take()?;
        let token = open.token.clone();
        let mut gap = index;
        if index < self.leaving {
            // The last of these takes its place, so that they stay together.
            self.leaving -= 1;
            self.staying.swap(index, self.leaving);
            self.note_index(index);
            gap = self.leaving;
        }
        self.staying.swap_remove(gap);
        self.note_index(gap);
        if let Some(old) = old {
            self.ages.remove(&(old, place));
        }
        Some(token)
    }
}

impl State {
    /// Notes that the connection at this index of `staying` has come there.
    fn note_index(&mut self, index: usize) {
        if let Some(moved) = self.staying.get(index)
            && let Some((at, _)) = &mut self.open[*moved].staying
        {
            *at = index;
        }
    }
}

impl Place {
    /// Cancelled when the connection is asked to leave.
    pub(in crate::front) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.pacing.state.lock();
        state.let_go(self.place);
        state.open.try_remove(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(places: &[Place]) -> usize {
        places.iter().filter(|place| place.token().is_cancelled()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_spread_and_is_over_in_time() {
        let spread = Duration::from_secs(20);
        let pacing = Pacing::new(Port::Grpc, spread, None);
        let places: Vec<Place> = (0..2_000).map(|_| pacing.join()).collect();
        let all = tokio::spawn({
            let pacing = pacing.clone();
            async move { pacing.ask_all().await }
        });
        let mut before = 0;
        for second in 1..=20 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = asked(&places);
            assert!(now - before <= 2_000 / 20 + 3, "{} in second {second}", now - before);
            before = now;
        }
        all.await.expect("it ends");
        assert_eq!(asked(&places), 2_000);
        assert!(pacing.join().token().is_cancelled(), "a connection that arrives now is asked at once");
        assert_eq!(pacing.staying(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_come_back_are_served_until_all_others_were_asked_and_leave_soon_after() {
        let spread = Duration::from_secs(16);
        let pacing = Pacing::new(Port::Grpc, spread, None);
        let mut first: Vec<Place> = (0..1_000).map(|_| pacing.join()).collect();
        let present = tokio::spawn({
            let pacing = pacing.clone();
            async move { pacing.ask_present().await }
        });
        let mut back = Vec::new();
        while !present.is_finished() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Each that is asked comes back, and one in ten of these leaves by itself.
            let gone = first.len();
            first.retain(|place| !place.token().is_cancelled());
            back.extend((first.len()..gone).map(|_| pacing.join()));
            back.truncate(back.len() - usize::from(!back.is_empty() && fastrand::u8(..10) == 0));
            assert_eq!(asked(&back), 0, "it is served");
            assert_eq!(pacing.staying(), first.len() + back.len());
        }
        assert!(first.is_empty());
        let begun = Instant::now();
        pacing.ask_all().await;
        assert_eq!((asked(&back), pacing.staying()), (back.len(), 0));
        let took = begun.elapsed();
        assert!((spread / 10..=spread / 7).contains(&took), "{took:?}");
        assert!(pacing.join().token().is_cancelled(), "nothing comes after that");
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_got_no_processor_does_not_ask_all_who_are_due_at_once() {
        let pacing = Pacing::new(Port::Grpc, Duration::from_secs(20), None);
        let places: Vec<Place> = (0..2_000).map(|_| pacing.join()).collect();
        let mut all = std::pin::pin!(pacing.ask_all());
        assert!(futures_util::poll!(all.as_mut()).is_pending());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(futures_util::poll!(all.as_mut()).is_pending());
        assert!(asked(&places) <= 30, "{} after a pause of five seconds", asked(&places));
        all.await;
        assert_eq!(asked(&places), 2_000);
    }

    #[tokio::test(start_paused = true)]
    async fn few_connections_do_not_take_the_whole_time() {
        let pacing = Pacing::new(Port::Grpc, Duration::from_secs(20), None);
        let places: Vec<Place> = (0..10).map(|_| pacing.join()).collect();
        let begun = Instant::now();
        pacing.ask_all().await;
        assert_eq!(asked(&places), 10);
        assert!(begun.elapsed() <= Duration::from_millis(500), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_came_together_grow_old_one_by_one() {
        let pacing = Pacing::new(Port::Grpc, Duration::ZERO, Some(Duration::from_secs(100)));
        let places: Vec<Place> = (0..1_000).map(|_| pacing.join()).collect();
        let gone = pacing.join();
        drop(gone);
        let old = tokio::spawn({
            let pacing = pacing.clone();
            async move { pacing.ask_the_old().await }
        });
        tokio::time::sleep(Duration::from_secs(74)).await;
        assert_eq!(asked(&places), 0);
        let mut before = 0;
        for second in 74..=140 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = asked(&places);
            // Ages are random: 20 of them end in a second on average, and more than 60 in one of 10^12 runs.
            assert!(now - before <= 60, "{} in second {second}", now - before);
            before = now;
        }
        assert_eq!(before, 1_000);
        old.abort();
        drop(places);
        let state = pacing.state.lock();
        assert!(
            state.open.is_empty() && state.ages.is_empty() && state.staying.is_empty(),
            "nothing is kept about connections that left"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_grew_old_while_the_relay_stood_still_are_asked_one_by_one() {
        let pacing = Pacing::new(Port::Grpc, Duration::ZERO, Some(Duration::from_secs(100)));
        let places: Vec<Place> = (0..1_000).map(|_| pacing.join()).collect();
        tokio::time::advance(Duration::from_secs(1_000)).await;
        let old = tokio::spawn({
            let pacing = pacing.clone();
            async move { pacing.ask_the_old().await }
        });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!((60..=120).contains(&asked(&places)), "{}", asked(&places));
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(asked(&places), 1_000);
        old.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_is_asked_for_the_relays_share_and_none_twice() {
        let pacing = Pacing::new(Port::Grpc, Duration::ZERO, Some(Duration::from_secs(100)));
        let mut places: Vec<Place> = (0..20).map(|_| pacing.join()).collect();
        for count in 1..=5 {
            pacing.ask_one();
            assert_eq!((asked(&places), pacing.staying()), (count, 20 - count));
        }
        places.retain(|place| !place.token().is_cancelled());
        places.truncate(3);
        assert_eq!(pacing.staying(), 3);
        (0..5).for_each(|_| pacing.ask_one());
        assert_eq!((asked(&places), pacing.staying()), (3, 0));
    }
}
