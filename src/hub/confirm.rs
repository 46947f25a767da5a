//! [`Confirmer`]: asks upstream for its current revision, once for all who were waiting when the ask began.
//!
//! Used by linearizable reads and by watch requests, whose answers name the current revision. Always holds: an answer comes
//! from an ask that began after the question, so it is at least the revision that was current then.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::upstream::{Confirmed, Upstream, UpstreamError};
use crate::types::{Revision, UpstreamHeader};

/// See the module.
#[derive(Debug)]
pub struct Confirmer {
    upstream: Arc<dyn Upstream>,
    header: Arc<UpstreamHeader>,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    asking: bool,
    waiting: Vec<Question>,
}

#[derive(Debug)]
struct Question {
    oldest: Option<Revision>,
    answer: oneshot::Sender<Result<Confirmed, UpstreamError>>,
}

impl Confirmer {
    pub(super) fn new(upstream: Arc<dyn Upstream>, header: Arc<UpstreamHeader>, patience: Duration) -> Arc<Self> {
        Arc::new(Self { upstream, header, patience, state: Mutex::default() })
    }

    /// The revision that is current in the cluster now, and whether `oldest` is compacted there. Cancel safe.
    ///
    /// # Errors
    /// As upstream fails, or [`UpstreamError::Timeout`] after the request timeout.
    pub async fn confirm(self: &Arc<Self>, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let (answer, answered) = oneshot::channel();
        let ask = {
            let mut state = self.state.lock();
            state.waiting.push(Question { oldest, answer });
            !std::mem::replace(&mut state.asking, true)
        };
        if ask {
            // A task of its own: whoever asked first may give up without the others losing their answer.
            tokio::spawn(self.clone().ask());
        }
        // The task answers every question, unless the runtime ends.
        answered.await.unwrap_or_else(|_| Err(UpstreamError::Unavailable("the relay is stopping".into())))
    }

    async fn ask(self: Arc<Self>) {
        loop {
            let questions = {
                let mut state = self.state.lock();
                if state.waiting.is_empty() {
                    state.asking = false;
                    return;
                }
                std::mem::take(&mut state.waiting)
            };
            self.answer(questions).await;
        }
    }

    /// One ask for all, at the oldest revision. Only where that one is compacted does it take more to tell for the others.
    async fn answer(&self, mut questions: Vec<Question>) {
        questions.sort_by_key(|question| question.oldest);
        let oldest = questions.iter().find_map(|question| question.oldest);
        let mut answer = self.ask_once(oldest).await;
        let mut wanted: Vec<Revision> = questions.iter().filter_map(|question| question.oldest).collect();
        wanted.dedup();
        // The first of `wanted` that upstream still has.
        let mut readable = 0;
        if matches!(&answer, Ok(confirmed) if confirmed.compacted) {
            let mut known_readable = wanted.len();
            readable = 1;
            while readable < known_readable {
                let middle = readable + (known_readable - readable) / 2;
                match self.ask_once(Some(wanted[middle])).await {
                    Ok(confirmed) if confirmed.compacted => readable = middle + 1,
                    Ok(_) => known_readable = middle,
                    Err(error) => {
                        answer = Err(error);
                        break;
                    }
                }
            }
        }
        let first_readable = wanted.get(readable).copied();
        for question in questions {
            let compacted = question.oldest.is_some_and(|oldest| first_readable.is_none_or(|first| oldest < first));
            let answer = answer.clone().map(|confirmed| Confirmed { compacted, ..confirmed });
            // Whoever gave up does not want it.
            let _ = question.answer.send(answer);
        }
    }

    async fn ask_once(&self, oldest: Option<Revision>) -> Result<Confirmed, UpstreamError> {
        let confirmed = tokio::time::timeout(self.patience, self.upstream.confirm(oldest))
            .await
            .unwrap_or(Err(UpstreamError::Timeout(self.patience)))?;
        self.header.observe(&confirmed.header);
        Ok(confirmed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tokio::sync::Semaphore;

    use super::*;
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
            Err(UpstreamError::Unavailable("not asked for here".into()))
        }

        async fn watch(&self, _: WatchRequest) -> Result<Box<dyn UpstreamWatch>, UpstreamError> {
            Err(UpstreamError::Unavailable("not asked for here".into()))
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
        let confirmer = Confirmer::new(fake.clone(), Arc::default(), Duration::from_secs(5));
        (fake, confirmer)
    }

    #[tokio::test]
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
        // The first ask is under way and has read revision 10: it must not answer those who come now.
        fake.revision.store(11, Ordering::SeqCst);
        let others: Vec<_> = (0..50).map(|_| ask(&confirmer)).collect();
        while confirmer.state.lock().waiting.len() < 50 {
            tokio::task::yield_now().await;
        }
        fake.gate.add_permits(2);
        assert_eq!(first.await.expect("task"), 10);
        for other in others {
            assert_eq!(other.await.expect("task"), 11);
        }
        assert_eq!(fake.asks.load(Ordering::SeqCst), 2);
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
}
