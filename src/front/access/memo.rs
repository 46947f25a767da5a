//! [`Memo`]: recent questions to etcd with their answers, and questions under way.
//!
//! How long an answer is valid is decided by the caller. Callers with the same question wait for the same answer.
//! Always holds: the memory is bounded, including the ranges, and each set of credentials has only a share of it.
//! Questions from before the last change that the relay saw are never found. What does not fit is asked but not kept.
//! Ranges are hashed outside the lock.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use bytes::Bytes;
use hashbrown::{HashMap, HashTable};
use tokio::{sync::OnceCell, time::Instant};

use super::{WireRange, ask::Verdict};
use crate::front::client::Credentials;

/// The size of a generation in bytes (there are two generations), and the share of one set of credentials.
const GENERATION: usize = 16 << 20;
const SHARE: usize = GENERATION / 16;
/// Approximate size of an entry in addition to its range.
const OVERHEAD: usize = 256;

/// A question with its hash, so that looking it up takes little time under the lock.
#[derive(Clone, Debug)]
pub(super) struct Question {
    hash: u64,
    credentials: Credentials,
    range: WireRange,
}

/// The answer to a question, once it has arrived.
#[derive(Debug)]
pub(super) struct Answer {
    /// The question was sent at this time or later.
    pub(super) asked: Instant,
    verdict: OnceCell<Verdict>,
}

/// Recent answers; see the module.
#[derive(Debug)]
pub(super) struct Memo {
    young: Generation,
    old: Generation,
    /// Answers to questions asked before this time are not valid.
    floor: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Generation {
    answers: HashTable<(Question, Arc<Answer>)>,
    bytes: usize,
    shares: HashMap<Credentials, usize>,
}

impl Question {
    pub(super) fn new(hasher: &RandomState, credentials: &Credentials, range: &WireRange) -> Self {
        let hash = hasher.hash_one((credentials, range));
        Self { hash, credentials: credentials.clone(), range: range.clone() }
    }

    pub(super) fn range(&self) -> &WireRange {
        &self.range
    }

    fn is(&self, other: &Self) -> bool {
        self.hash == other.hash && self.credentials == other.credentials && self.range == other.range
    }

    fn bytes(&self) -> usize {
        OVERHEAD + self.credentials.bytes() + self.range.key.len() + self.range.range_end.len()
    }

    /// A copy with its own memory, so that the kept question does not keep the client's whole request in memory.
    fn apart(&self) -> Self {
        let range = WireRange {
            key: Bytes::copy_from_slice(&self.range.key),
            range_end: Bytes::copy_from_slice(&self.range.range_end),
        };
        Self { range, ..self.clone() }
    }
}

impl Answer {
    /// Returns the answer. Calls `ask` unless the same question is already under way. If the task that asks gives up,
    /// another waiting task takes over.
    pub(super) async fn verdict<F: Future<Output = Verdict>>(&self, ask: impl FnOnce() -> F) -> Verdict {
        self.verdict.get_or_init(ask).await.clone()
    }
}

impl Memo {
    pub(super) fn new() -> Self {
        Self { young: Generation::default(), old: Generation::default(), floor: Instant::now() }
    }

    /// Finds the answer to this question, or the question under way. It must have been asked at `since` or later; a
    /// denial at `denied_since` or later.
    pub(super) fn find(&self, question: &Question, since: Instant, denied_since: Instant) -> Option<Arc<Answer>> {
        let answer = self.any(question)?;
        let counts = match answer.verdict.get() {
            None | Some(Verdict::Granted) => answer.asked >= since,
            Some(Verdict::Denied(_)) => answer.asked >= since.max(denied_since),
            Some(Verdict::Unanswerable(_) | Verdict::Unknown(_)) => false,
        };
        counts.then(|| answer.clone())
    }

    /// Whether etcd denied this range, at `since` or later, to a client that it knows.
    pub(super) fn denied(&self, question: &Question, since: Instant) -> bool {
        self.any(question).is_some_and(|answer| {
            answer.asked >= since
                && matches!(answer.verdict.get(), Some(Verdict::Denied(denial)) if !denial.is_of_caller())
        })
    }

    /// Begins a question that is asked now. Returns memory that must be freed outside the lock.
    pub(super) fn begin(&mut self, question: &Question, now: Instant) -> (Arc<Answer>, Option<Generation>) {
        let answer = Arc::new(Answer { asked: now, verdict: OnceCell::new() });
        let bytes = question.bytes();
        if let Some((_, known)) = self.young.answers.find_mut(question.hash, |(known, _)| known.is(question)) {
            *known = answer.clone();
            return (answer, None);
        }
        let mut outdated = None;
        if self.young.bytes + bytes > GENERATION {
            outdated = Some(std::mem::replace(&mut self.old, std::mem::take(&mut self.young)));
        }
        let share = self.young.shares.get(&question.credentials).copied().unwrap_or(0);
        if share + bytes <= SHARE {
            let own = question.apart();
            self.young.shares.insert(own.credentials.clone(), share + bytes);
            self.young.bytes += bytes;
            self.young.answers.insert_unique(own.hash, (own, answer.clone()), |(known, _)| known.hash);
        }
        (answer, outdated)
    }

    /// Forgets all questions asked before `now`, including those still under way.
    pub(super) fn forget(&mut self, now: Instant) -> [Generation; 2] {
        self.floor = now;
        [std::mem::take(&mut self.young), std::mem::take(&mut self.old)]
    }

    fn any(&self, question: &Question) -> Option<&Arc<Answer>> {
        [&self.young, &self.old]
            .into_iter()
            .find_map(|generation| generation.answers.find(question.hash, |(known, _)| known.is(question)))
            .map(|(_, answer)| answer)
            .filter(|answer| answer.asked >= self.floor)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;

    struct Asking {
        memo: Memo,
        hasher: RandomState,
    }

    impl Asking {
        fn new() -> Self {
            Self { memo: Memo::new(), hasher: RandomState::new() }
        }

        fn question(&self, who: &Credentials, range: &WireRange) -> Question {
            Question::new(&self.hasher, who, range)
        }

        async fn granted(&mut self, who: &Credentials, range: &WireRange) -> Instant {
            let question = self.question(who, range);
            let asked = Instant::now();
            let (answer, _) = self.memo.begin(&question, asked);
            answer.verdict(async || Verdict::Granted).await;
            asked
        }

        fn has(&self, who: &Credentials, range: &WireRange, since: Instant) -> bool {
            self.memo.find(&self.question(who, range), since, since).is_some()
        }
    }

    fn who(token: &str) -> Credentials {
        let value = HeaderValue::from_str(token).expect("a value");
        Credentials::of(&HeaderMap::from_iter([(HeaderName::from_static("token"), value)]))
    }

    fn range(key: &str) -> WireRange {
        WireRange { key: Bytes::copy_from_slice(key.as_bytes()), range_end: Bytes::new() }
    }

    #[tokio::test]
    async fn a_grant_is_for_one_client_and_one_range_and_no_longer_than_asked() {
        let mut asking = Asking::new();
        let asked = asking.granted(&who("alice"), &range("a")).await;
        assert!(asking.has(&who("alice"), &range("a"), asked));
        assert!(!asking.has(&who("alice"), &range("a"), asked + Duration::from_nanos(1)));
        assert!(!asking.has(&who("bob"), &range("a"), asked));
        assert!(!asking.has(&Credentials::none(), &range("a"), asked));
        assert!(!asking.has(&who("alice"), &range("b"), asked));
        let open = WireRange { range_end: Bytes::from_static(&[0]), ..range("a") };
        assert!(!asking.has(&who("alice"), &open, asked));
    }

    #[tokio::test]
    async fn a_change_outdates_what_was_asked_before_it_even_if_the_answer_comes_later() {
        let mut asking = Asking::new();
        let question = asking.question(&who("alice"), &range("b"));
        let asked = asking.granted(&who("alice"), &range("a")).await;
        let (late, _) = asking.memo.begin(&question, asked);
        asking.memo.forget(asked + Duration::from_nanos(1));
        late.verdict(async || Verdict::Granted).await;
        assert!(!asking.has(&who("alice"), &range("a"), asked));
        assert!(!asking.has(&who("alice"), &range("b"), asked));
    }

    #[tokio::test]
    async fn who_asks_the_same_waits_for_the_same_answer_and_what_etcd_did_not_say_is_asked_again() {
        let mut asking = Asking::new();
        let question = asking.question(&who("alice"), &range("a"));
        let asked = Instant::now();
        let (first, _) = asking.memo.begin(&question, asked);
        let second = asking.memo.find(&question, asked, asked).expect("the question is under way");
        assert!(Arc::ptr_eq(&first, &second));
        first.verdict(async || Verdict::Unknown("away".into())).await;
        let same = second.verdict(async || unreachable!("the question was asked")).await;
        assert_eq!(same, Verdict::Unknown("away".into()));
        assert!(asking.memo.find(&question, asked, asked).is_none());
    }

    #[tokio::test]
    async fn it_does_not_grow_beyond_its_bounds_and_one_client_fills_its_share_alone() {
        let mut asking = Asking::new();
        let asked = asking.granted(&who("bob"), &range("a")).await;
        let large = "x".repeat(64 << 10);
        for number in 0..1000 {
            asking.granted(&who("alice"), &range(&format!("{number}{large}"))).await;
        }
        assert!(asking.memo.young.bytes <= SHARE + 1024, "{}", asking.memo.young.bytes);
        assert!(asking.has(&who("bob"), &range("a"), asked), "the answers of another client stay");
        for number in 0..64 {
            for part in 0..15 {
                asking.granted(&who(&number.to_string()), &range(&format!("{part}{large}"))).await;
            }
        }
        assert!(asking.memo.young.bytes <= GENERATION && asking.memo.old.bytes <= GENERATION);
    }
}
