//! [`race`]: sends one request to members in turn, without waiting long for any of them.
//!
//! For requests that may be sent twice without harm: confirmations, and opening connections. Always holds: each member
//! is asked at most once; the first answer is returned; then the requests to the others are dropped.

use std::{pin::pin, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

/// How long a member may take before the next one is asked as well. A linearizable read takes a few milliseconds, and
/// so does a connection. If one takes longer, a second one costs little.
pub(in crate::source) const HEDGE: Duration = Duration::from_millis(250);

/// Asks the first of `members`, and the next one when that fails, or when it has not answered within [`HEDGE`] and
/// `is_late` says that this is its fault.
///
/// # Errors
/// If all failed: each member with its error, in the order of their failures.
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
        // Cancel safe: answers stay in the set, and the timer is kept. The order is fixed, so that a simulation
        // repeats.
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
