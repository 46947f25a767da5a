//! [`Pacing`]: asks the connections of a port to leave, one after the other.
//!
//! A client that is asked to leave connects elsewhere at once. All of them at the same moment are a storm for the neighbours: so where the
//! port stops, connections are asked in no order, spread over a part of the drain time; and where a connection has a greatest age, each has its
//! own, so that those which came together do not go together.
//!
//! Not here: what a connection does that is asked to leave: it says GOAWAY, and its streams end, see `http2` and whoever has the token
//! in a request's extensions. Always holds: a connection is asked once, and one that comes while the port stops is asked at once.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use metrics::counter;
use parking_lot::Mutex;
use rand::{Rng as _, seq::SliceRandom as _};
use slab::Slab;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::telemetry::names::{self, LeaveReason, Port};

/// As many connections a second are asked to leave at least, so that a relay with few of them ends soon.
const LEAST_RATE: u32 = 100;
/// How much sooner or later than the greatest age a connection is asked, as a part of it.
const JITTER: f64 = 0.25;
/// Between two looks for connections that are too old.
const AGE_STEP: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(super) struct Pacing {
    port: Port,
    spread: Duration,
    max_age: Option<Duration>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Slab<(CancellationToken, Option<Instant>)>,
    /// When each has its greatest age; those that were not asked yet.
    ages: BTreeSet<(Instant, usize)>,
    stopping: bool,
}

/// A connection's place; dropped, it is asked for nothing.
#[derive(Debug)]
pub(super) struct Place {
    pacing: Arc<Pacing>,
    place: usize,
    token: CancellationToken,
}

impl Pacing {
    /// A port that takes `spread` at most to ask all of its connections to leave.
    pub(super) fn new(port: Port, spread: Duration, max_age: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { port, spread, max_age, state: Mutex::default() })
    }

    /// A connection that has just come.
    pub(super) fn join(self: &Arc<Self>) -> Place {
        let token = CancellationToken::new();
        let old =
            self.max_age.map(|age| Instant::now() + age.mul_f64(rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER)));
        let mut state = self.state.lock();
        let place = state.open.insert((token.clone(), old));
        if let Some(old) = old {
            state.ages.insert((old, place));
        }
        let stopping = state.stopping;
        drop(state);
        if stopping {
            token.cancel();
        }
        Place { pacing: self.clone(), place, token }
    }

    /// Asks connections that are too old, for ever.
    pub(super) async fn ask_the_old(&self) {
        if self.max_age.is_none() {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(AGE_STEP).await;
            while let Some(token) = self.next_old() {
                self.ask(&token, LeaveReason::Age);
            }
        }
    }

    fn next_old(&self) -> Option<CancellationToken> {
        let mut state = self.state.lock();
        let (at, place) = *state.ages.first().filter(|(at, _)| *at <= Instant::now())?;
        state.ages.remove(&(at, place));
        let (token, old) = state.open.get_mut(place)?;
        *old = None;
        Some(token.clone())
    }

    /// Asks all connections, within the spread.
    pub(super) async fn ask_all(&self) {
        let mut places: Vec<usize> = {
            let mut state = self.state.lock();
            state.stopping = true;
            state.open.iter().map(|(place, _)| place).collect()
        };
        places.shuffle(&mut rand::rng());
        let count = u32::try_from(places.len()).unwrap_or(u32::MAX).max(1);
        let spread = self.spread.min(Duration::from_secs(1) * count / LEAST_RATE);
        let begun = Instant::now();
        for (index, place) in places.into_iter().enumerate() {
            let at = begun + spread.mul_f64(index as f64 / f64::from(count));
            if at > Instant::now() {
                tokio::time::sleep_until(at).await;
            }
            // A connection that has left needs no asking, and one that took its place was asked when it came.
            let token = self.state.lock().open.get(place).map(|(token, _)| token.clone());
            if let Some(token) = token {
                self.ask(&token, LeaveReason::Stopping);
            }
        }
    }

    fn ask(&self, token: &CancellationToken, why: LeaveReason) {
        if !token.is_cancelled() {
            counter!(names::CONNECTIONS_ASKED_TO_LEAVE, Port::LABEL => self.port.as_str(), LeaveReason::LABEL => why.as_str())
                .increment(1);
            token.cancel();
        }
    }
}

impl Place {
    /// Cancelled when the connection is asked to leave.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.pacing.state.lock();
        if let Some((_, Some(old))) = state.open.try_remove(self.place) {
            state.ages.remove(&(old, self.place));
        }
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
        let spread = Duration::from_secs(10);
        let pacing = Pacing::new(Port::Grpc, spread, None);
        let places: Vec<Place> = (0..2_000).map(|_| pacing.join()).collect();
        let all = tokio::spawn({
            let pacing = pacing.clone();
            async move { pacing.ask_all().await }
        });
        let mut before = 0;
        for second in 1..=10 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = asked(&places);
            assert!(now - before <= 2_000 / 10 + 1, "{} in second {second}", now - before);
            before = now;
        }
        all.await.expect("it ends");
        assert_eq!(asked(&places), 2_000);
        assert!(pacing.join().token().is_cancelled(), "who comes now is asked at once");
    }

    #[tokio::test(start_paused = true)]
    async fn few_connections_do_not_take_the_whole_time() {
        let pacing = Pacing::new(Port::Grpc, Duration::from_secs(10), None);
        let places: Vec<Place> = (0..10).map(|_| pacing.join()).collect();
        let begun = Instant::now();
        pacing.ask_all().await;
        assert_eq!(asked(&places), 10);
        assert!(begun.elapsed() <= Duration::from_millis(150), "{:?}", begun.elapsed());
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
        for second in 74..=126 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = asked(&places);
            assert!(now - before < 100, "{} in second {second}", now - before);
            before = now;
        }
        assert_eq!(before, 1_000);
        old.abort();
        drop(places);
        let state = pacing.state.lock();
        assert!(state.open.is_empty() && state.ages.is_empty(), "nothing is kept of who has left");
    }
}
