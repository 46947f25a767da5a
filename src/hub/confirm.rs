//! [`Confirmer`]: asks upstream for its current revision, with one request for all callers that were waiting when the
//! request began. While a request takes long, the next one begins beside it.
//!
//! Used by linearizable reads and by watch requests, whose answers name the current revision. Requests for watches have a
//! rate, see `spacing`. Always holds: an answer comes from a request that began after the caller asked, so its revision
//! is at least the one that was current then.

mod rounds;
mod spacing;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use self::{
    rounds::{Callers, Duty, Round, Rounds},
    spacing::Spacing,
};
use super::{
    stats,
    upstream::{Confirmed, Upstream, UpstreamError},
};
use crate::{
    critical::Tasks,
    types::{Revision, UpstreamHeader},
};

/// How often tasks that are ready run before the next request, if many callers were answered. With three times it
/// serves a quarter more of 160 readers at a time; more times bring nothing.
const TURNS: usize = 3;

/// When a request has been under way for this long, callers who wait for the next one do not wait for its answer.
/// Otherwise a caller waits up to twice as long as etcd takes, which matters where that is half a second.
const SLOW: Duration = Duration::from_millis(50);
/// The most requests at a time.
const MOST: usize = 8;

/// Asks for the current revision; see the module.
#[derive(Debug)]
pub struct Confirmer {
    upstream: Arc<dyn Upstream>,
    header: Arc<UpstreamHeader>,
    patience: Duration,
    tasks: Tasks,
    /// Callers that need to know about a revision name it.
    rounds: Rounds<Revision, Arc<Answer>>,
    spacing: Mutex<Spacing>,
    /// Somebody urgent has joined a round that may be held up.
    hurry: Notify,
}

#[derive(Debug)]
struct Answer {
    confirmed: Result<Confirmed, UpstreamError>,
    /// The first of the revisions in question that upstream still has.
    readable: Option<Revision>,
}

/// The callers that wait for the same answer.
type Asked = Round<Arc<Answer>>;

/// The task that sends the requests, while it runs.
#[derive(Debug)]
struct Asking {
    confirmer: Arc<Confirmer>,
    /// The rounds whose requests are under way.
    rounds: Vec<Arc<Asked>>,
    /// Whether it ran to its end.
    over: bool,
}

impl Confirmer {
    pub(super) fn new(
        upstream: Arc<dyn Upstream>,
        header: Arc<UpstreamHeader>,
        patience: Duration,
        tasks: Tasks,
    ) -> Arc<Self> {
        let spacing = Mutex::new(Spacing::new(Instant::now()));
        let (rounds, hurry) = (Rounds::default(), Notify::new());
        Arc::new(Self { upstream, header, patience, tasks, rounds, spacing, hurry })
    }

    /// The revision that is current in the cluster now, and whether `oldest` is compacted there. Cancel safe.
    ///
    /// # Errors
    /// As upstream fails, or [`UpstreamError::Timeout`] after the request timeout.
    pub async fn confirm(self: &Arc<Self>, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        self.join(oldest, Callers::Urgent).await
    }

    /// The same for watches that a client creates on the connection with this number. While clients on other
    /// connections create watches too, the request may wait some milliseconds, so that they share it.
    ///
    /// # Errors
    /// As for [`Self::confirm`].
    pub async fn confirm_for_watches(
        self: &Arc<Self>,
        oldest: Option<Revision>,
        connection: Option<u64>,
    ) -> Result<Confirmed, UpstreamError> {
        self.join(oldest, connection.map_or(Callers::Urgent, Callers::Watches)).await
    }

    async fn join(self: &Arc<Self>, oldest: Option<Revision>, caller: Callers) -> Result<Confirmed, UpstreamError> {
        let (answer, duty) = self.rounds.join(oldest, caller);
        match duty {
            Duty::None => {}
            Duty::Start => {
                // A separate task: the first caller may give up without the others losing their answer.
                let asking = Asking { confirmer: self.clone(), rounds: Vec::new(), over: false };
                self.tasks.detach("confirmer", asking.run());
            }
            Duty::Hurry => self.hurry.notify_one(),
        }
        answer.await.to(oldest)
    }

    /// Until when the next request is held up.
    fn held_until(&self) -> Option<Instant> {
        let callers = self.rounds.callers()?;
        self.spacing.lock().begin(callers, Instant::now()).err()
    }

    /// One request for all, at the oldest revision. Only if that one is compacted does it take more requests to answer
    /// the others.
    async fn answer(&self, mut wanted: Vec<Revision>) -> Answer {
        wanted.sort_unstable();
        wanted.dedup();
        let mut confirmed = self.ask_once(wanted.first().copied()).await;
        // The first of `wanted` that upstream still has.
        let mut readable = 0;
        if matches!(&confirmed, Ok(confirmed) if confirmed.compacted) {
            let mut known_readable = wanted.len();
            readable = 1;
            while readable < known_readable {
                let middle = readable + (known_readable - readable) / 2;
                match self.ask_once(Some(wanted[middle])).await {
                    Ok(confirmed) if confirmed.compacted => readable = middle + 1,
                    Ok(_) => known_readable = middle,
                    Err(error) => {
                        confirmed = Err(error);
                        break;
                    }
                }
            }
        }
        Answer { confirmed, readable: wanted.get(readable).copied() }
    }

    async fn ask_once(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let asked = self.header.newest();
        stats::asked_for_revision();
        let confirmed = tokio::time::timeout(self.patience, self.upstream.confirm(oldest))
            .await
            .unwrap_or(Err(UpstreamError::Timeout(self.patience)))?;
        self.header.observe_since(&asked, &confirmed.header);
        Ok(confirmed)
    }
}

impl Asking {
    async fn run(mut self) {
        let confirmer = self.confirmer.clone();
        let ask = |(round, wanted): (Arc<Asked>, Vec<Revision>)| {
            let confirmer = &confirmer;
            async move { (round, Arc::new(confirmer.answer(wanted).await)) }
        };
        let mut asking = FuturesUnordered::new();
        // When the next request may begin beside those that are under way.
        let mut next_at = Instant::now();
        loop {
            let has_room = asking.len() < MOST;
            let is_due = asking.is_empty() || has_room && Instant::now() >= next_at;
            let held_until = if is_due { confirmer.held_until() } else { None };
            if is_due && held_until.is_none() {
                asking.extend(self.next().map(ask));
                next_at = Instant::now() + SLOW;
            }
            if self.over {
                return;
            }
            // Cancel safe: answers stay in their set.
            tokio::select! {
                biased;
                Some((round, answer)) = asking.next() => {
                    self.rounds.retain(|known| !Arc::ptr_eq(known, &round));
                    let served = round.close(answer);
                    stats::confirmed(served);
                    if served > 1 {
                        // Many callers ask again as soon as they are answered. Tasks that are ready run first, so that
                        // their next requests share one round too; a task that waits for nothing else is back at once.
                        for _ in 0..TURNS {
                            tokio::task::yield_now().await;
                        }
                    }
                }
                () = confirmer.hurry.notified(), if held_until.is_some() => {}
                () = sleep_until(held_until.unwrap_or(next_at)), if has_room => {}
            }
        }
    }

    /// The next round, which nobody can join any more. If nobody waits and nothing is under way, the task is over.
    fn next(&mut self) -> Option<(Arc<Asked>, Vec<Revision>)> {
        let next = self.confirmer.rounds.next(!self.rounds.is_empty());
        self.rounds.extend(next.as_ref().map(|(round, _)| round.clone()));
        self.over = self.rounds.is_empty();
        next
    }
}

/// If the task does not run to its end, because the runtime stops or the task failed, the callers get an error instead
/// of waiting forever.
impl Drop for Asking {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let next = self.confirmer.rounds.stop();
        for round in self.rounds.drain(..).chain(next) {
            let stopping = UpstreamError::Unavailable("the relay is stopping".into());
            round.close(Arc::new(Answer { confirmed: Err(stopping), readable: None }));
        }
    }
}

impl Answer {
    fn to(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let compacted = oldest.is_some_and(|oldest| self.readable.is_none_or(|first| oldest < first));
        self.confirmed.clone().map(|confirmed| Confirmed { compacted, ..confirmed })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::atomic::{AtomicI64, AtomicUsize, Ordering},
        task::{Context, Poll, Waker},
    };

    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::hub::testing;
    use crate::{
        hub::upstream::{Page, UpstreamWatch, WatchRequest},
        types::{Header, KeyRange},
    };

    #[derive(Debug)]
    struct Fake {
        asks: AtomicUsize,
        revision: AtomicI64,
        compact_revision: i64,
        gate: Semaphore,
    }

    #[async_trait]
    impl Upstream for Fake {
        async fn page(&self, _: &KeyRange, _: Option<Revision>, _: usize) -> Result<Page, UpstreamError> {
            Err(UpstreamError::Unavailable("not asked for in this test".into()))
        }

        async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
            Err(UpstreamError::Unavailable("not asked for in this test".into()))
        }

        async fn confirm(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
            let revision = Revision::new(self.revision.load(Ordering::SeqCst));
            self.asks.fetch_add(1, Ordering::SeqCst);
            self.gate.acquire().await.expect("open").forget();
            let compacted = oldest.is_some_and(|oldest| oldest.get() < self.compact_revision);
            Ok(Confirmed { header: Header { revision, ..Header::default() }, compacted })
        }
    }

    fn confirmer(compact_revision: i64, permits: usize) -> (Arc<Fake>, Arc<Confirmer>) {
        let gate = Semaphore::new(permits);
        let fake = Arc::new(Fake { asks: AtomicUsize::new(0), revision: AtomicI64::new(10), compact_revision, gate });
        let confirmer = Confirmer::new(fake.clone(), Arc::default(), Duration::from_secs(5), Tasks::new());
        (fake, confirmer)
    }

    // The clock is paused, so that no request takes long.
    #[tokio::test(start_paused = true)]
    async fn those_who_wait_share_one_ask_that_began_after_they_came() {
        let (fake, confirmer) = confirmer(0, 0);
        let ask = |confirmer: &Arc<Confirmer>| {
            let confirmer = confirmer.clone();
            tokio::spawn(async move { confirmer.confirm(None).await.expect("answer").header.revision.get() })
        };
        let first = ask(&confirmer);
        while fake.asks.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // The first request is under way and has read revision 10. It must not answer the callers that come now.
        fake.revision.store(11, Ordering::SeqCst);
        let others: Vec<_> = (0..50).map(|_| ask(&confirmer)).collect();
        while confirmer.rounds.waiting() < 50 {
            tokio::task::yield_now().await;
        }
        fake.gate.add_permits(2);
        assert_eq!(first.await.expect("task"), 10);
        for other in others {
            assert_eq!(other.await.expect("task"), 11);
        }
        assert_eq!(fake.asks.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn while_a_request_takes_long_later_callers_are_asked_for_beside_it() {
        let (fake, confirmer) = confirmer(0, 0);
        let mut asked = Vec::new();
        for count in 1..=2 * MOST {
            let confirmer = confirmer.clone();
            asked.push(tokio::spawn(async move { confirmer.confirm(None).await.expect("answer").header.revision }));
            tokio::time::sleep(2 * SLOW).await;
            assert_eq!(fake.asks.load(Ordering::SeqCst), count.min(MOST));
            fake.revision.fetch_add(1, Ordering::SeqCst);
        }
        fake.gate.add_permits(1_000);
        for (count, asked) in (0..).zip(asked) {
            // The last ones had to wait, and share a request.
            let shared = 10 + 2 * MOST as i64;
            let expected = if count < MOST as i64 { 10 + count } else { shared };
            assert_eq!(asked.await.expect("task"), Revision::new(expected));
        }
        assert_eq!(fake.asks.load(Ordering::SeqCst), MOST + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_clients_that_create_watches_shares_requests_and_readers_do_not_wait_for_it() {
        const STORM: u64 = 2_000;
        let (fake, confirmer) = confirmer(0, Semaphore::MAX_PERMITS);
        let begun = Instant::now();
        let mut storm = Vec::new();
        for connection in 0..STORM {
            let confirmer = confirmer.clone();
            storm.push(tokio::spawn(async move {
                let came = Instant::now();
                confirmer.confirm_for_watches(None, Some(connection)).await.expect("answer");
                came.elapsed()
            }));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for asked in storm {
            let waited = asked.await.expect("task");
            assert!(waited <= Duration::from_millis(10), "waited for {waited:?}");
        }
        let asks = fake.asks.load(Ordering::SeqCst);
        let seconds = begun.elapsed().as_secs_f64();
        assert!((asks as f64) < 60.0 + 200.0 * seconds, "{asks} requests in {seconds} s");

        // The rate is used up, so a client that creates watches waits.
        let mut watches = by_hand_for_watches(confirmer.clone(), STORM);
        assert!(watches.poll().is_none());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(watches.poll().is_none(), "it is held up");
        let now = Instant::now();
        confirmer.confirm(None).await.expect("answer");
        assert_eq!(watches.poll(), Some(10), "it shares the reader's answer");
        assert_eq!(now.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_creates_one_watch_after_the_other_alone_is_not_held_up() {
        let (fake, confirmer) = confirmer(0, Semaphore::MAX_PERMITS);
        let begun = Instant::now();
        for _ in 0..1_000 {
            confirmer.confirm_for_watches(None, Some(7)).await.expect("answer");
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(fake.asks.load(Ordering::SeqCst), 1_000);
    }

    #[tokio::test]
    async fn each_is_told_of_its_own_revision_whether_it_is_compacted() {
        let (_, confirmer) = confirmer(6, 1000);
        let asks = [None, Some(3), Some(5), Some(6), Some(9)].map(|oldest| {
            let confirmer = confirmer.clone();
            tokio::spawn(async move { confirmer.confirm(oldest.map(Revision::new)).await.expect("answer").compacted })
        });
        let mut answers = Vec::new();
        for ask in asks {
            answers.push(ask.await.expect("task"));
        }
        assert_eq!(answers, [false, true, true, false, false]);
    }

    #[tokio::test]
    async fn who_gives_up_is_not_woken_and_takes_nothing_from_the_others() {
        let (fake, confirmer) = confirmer(0, 0);
        let mut first = by_hand(confirmer.clone());
        assert!(first.poll().is_none());
        while fake.asks.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let mut gone = by_hand(confirmer.clone());
        let mut stays = by_hand(confirmer.clone());
        assert!(gone.poll().is_none() && stays.poll().is_none() && stays.poll().is_none());
        assert_eq!(confirmer.rounds.waiting(), 2, "polled twice, it waits once");
        drop(gone);
        assert_eq!(confirmer.rounds.waiting(), 1);
        fake.gate.add_permits(2);
        for task in [&mut first, &mut stays] {
            while !task.woken() {
                tokio::task::yield_now().await;
            }
            assert_eq!(task.poll(), Some(10));
        }
    }

    #[test]
    fn nobody_waits_in_vain_when_the_runtime_ends() {
        let (_, confirmer) = confirmer(0, 0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let asked = |confirmer: &Arc<Confirmer>| {
            let confirmer = confirmer.clone();
            Box::pin(async move { confirmer.confirm(None).await })
        };
        let (mut first, mut second) = (asked(&confirmer), asked(&confirmer));
        let mut cx = Context::from_waker(Waker::noop());
        runtime.block_on(async {
            assert!(first.as_mut().poll(&mut cx).is_pending());
            // The task has begun its request; callers that come now wait for the next round.
            while confirmer.rounds.is_awaited() {
                tokio::task::yield_now().await;
            }
            assert!(second.as_mut().poll(&mut cx).is_pending());
        });
        drop(runtime);
        for mut question in [first, second] {
            let answer = question.as_mut().poll(&mut cx);
            assert!(matches!(answer, Poll::Ready(Err(UpstreamError::Unavailable(_)))), "{answer:?}");
        }
    }

    /// A caller that is polled by hand.
    struct Task {
        question: Pin<Box<dyn Future<Output = Result<Confirmed, UpstreamError>>>>,
        woken: Arc<testing::Woken>,
    }

    impl Task {
        fn poll(&mut self) -> Option<i64> {
            let waker = self.woken.clone().into();
            match self.question.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(answer) => Some(answer.expect("an answer").header.revision.get()),
                Poll::Pending => None,
            }
        }

        fn woken(&self) -> bool {
            self.woken.times() == 1
        }
    }

    fn by_hand_for_watches(confirmer: Arc<Confirmer>, connection: u64) -> Task {
        let question = Box::pin(async move { confirmer.confirm_for_watches(None, Some(connection)).await });
        Task { question, woken: Arc::default() }
    }

    fn by_hand(confirmer: Arc<Confirmer>) -> Task {
        Task { question: Box::pin(async move { confirmer.confirm(None).await }), woken: Arc::default() }
    }
}
