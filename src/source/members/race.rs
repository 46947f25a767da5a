//! [`race`]: puts one question to members in turn, without waiting long for any.
//!
//! Called where a question may be put twice without harm: confirmations, and the making of connections. Always holds: each member is asked
//! once at most; the answer is the first that comes; what was asked of the others ends with it.

use std::{pin::pin, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

/// How long a member may take before the next is asked as well. A linearizable read takes a few milliseconds, and so does a connection; one that
/// takes longer costs a second one, which is little.
pub(in crate::source) const HEDGE: Duration = Duration::from_millis(250);

/// Asks the first of `members`, and the next when that fails, or has not answered within [`HEDGE`] and `is_late` says that this is its
/// fault.
///
/// # Errors
/// Where all failed: each member with its error, in the order of their failures.
pub(in crate::source) async fn race<T, E, F>(
    members: impl IntoIterator<Item = usize>,
    ask: impl Fn(usize) -> F,
    is_late: impl Fn(usize) -> bool,
) -> Result<(usize, T), Vec<(usize, E)>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut members = members.into_iter();
    let mut asking = FuturesUnordered::new();
    let mut failures = Vec::new();
    let put = |member: usize| {
        let answer = ask(member);
        async move { (member, answer.await) }
    };
    let mut last = members.next();
    asking.extend(last.map(put));
    let mut hedge = pin!(sleep_until(Instant::now() + HEDGE));
    loop {
        // Cancel safe: answers stay in the set, and the timer is kept. The order is fixed, so that a simulation repeats.
        tokio::select! {
            biased;
            answer = asking.next() => match answer {
                Some((member, Ok(answer))) => return Ok((member, answer)),
                Some((member, Err(error))) => {
                    failures.push((member, error));
                    if asking.is_empty() {
                        last = members.next();
                        asking.extend(last.map(put));
                        hedge.as_mut().reset(Instant::now() + HEDGE);
                    }
                }
                None => return Err(failures),
            },
            () = &mut hedge, if last.is_some() => {
                hedge.as_mut().reset(Instant::now() + HEDGE);
                if last.is_some_and(&is_late) {
                    last = members.next();
                    asking.extend(last.map(put));
                }
            }
        }
    }
}
