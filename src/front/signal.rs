//! [`Signal`]: notifies thousands of streams once of an event, such as the end of the relay.
//!
//! A cancellation token can do the same, but each check of it takes locks that all streams share, and a stream checks
//! at every poll. Here a check is a single load. Always holds: a listener is woken, or sees the event at its next
//! check.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::latest::{Follower, Latest};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signal {
    /// Ends when the event happens.
    silence: Arc<Latest<()>>,
    /// Forwards the token's cancellation as long as a listener may exist.
    _follows: Arc<AbortOnDropHandle<()>>,
}

impl Signal {
    /// Creates a signal for the cancellation of `token`.
    ///
    /// # Panics
    /// Panics outside a tokio runtime.
    #[must_use]
    pub fn of(token: CancellationToken) -> Self {
        let silence = Arc::new(Latest::new(()));
        let ends = silence.clone();
        let follows = tokio::spawn(async move {
            token.cancelled().await;
            ends.end();
        });
        Self { silence, _follows: Arc::new(AbortOnDropHandle::new(follows)) }
    }

    /// A listener, for one task at a time.
    #[must_use]
    pub fn listener(&self) -> Listener {
        Listener(self.silence.follow())
    }
}

/// Listens to a [`Signal`].
#[derive(Debug)]
pub struct Listener(Follower<()>);

impl Listener {
    /// Ready when the event has happened.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.0.poll_next(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Future for Listener {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn all_who_listen_are_told_and_those_who_come_later() {
        let token = CancellationToken::new();
        let signal = Signal::of(token.clone());
        let mut tasks = tokio::task::JoinSet::new();
        let (listening, mut count) = tokio::sync::mpsc::channel(10);
        for _ in 0..10 {
            let mut listener = signal.listener();
            let listening = listening.clone();
            tasks.spawn(poll_fn(move |cx| {
                let told = listener.poll(cx);
                if told.is_pending() {
                    let _ = listening.try_send(());
                }
                told
            }));
        }
        for _ in 0..10 {
            count.recv().await.expect("one listens");
        }
        token.cancel();
        tasks.join_all().await;
        let mut late = signal.listener();
        poll_fn(|cx| late.poll(cx)).await;
    }
}
