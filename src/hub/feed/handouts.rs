//! [`Handouts`]: what a publication gives to the watches of a feed, and the way it gets to them.
//!
//! Made by `inner` under the feed's lock: for each group of equal subscriptions that wants something, its payload and
//! its members at that moment, which are pointers. Pushed by the feed's driver without that lock. So neither a create
//! nor a read waits for the pushes, however many streams there are. Publications of a feed are pushed one after the
//! other. Whoever has to know that nothing is left to push uses [`super::Feed::lock_settled`].
//!
//! While a publication is pushed, watches come and go. Always holds: a watch gets every revision that it needs, and
//! none twice or from another feed, since
//! - the revisions are in the history and the snapshot before the feed's lock is released. So a watch that is made
//!   meanwhile, or becomes live, begins above them or has read them from the history. A push below the position of a
//!   watch changes nothing;
//! - the lists that the pushes go through are copies, so that no watch moves within them. One that has left may have
//!   made way for a watch of another feed on the same stream. A push names its feed, and changes no other feed's watch.

use std::{sync::Arc, task::Waker};

use super::places::Seated;
use crate::hub::{
    index::{Group, Members},
    outbox::FeedId,
    payload::Payload,
};

/// What a publication gives to whom; see the module.
#[derive(Debug)]
pub(super) struct Handouts {
    feed: FeedId,
    /// The feed's streams before the publication.
    streams: Seated,
    groups: Vec<(Members, Arc<Payload>)>,
}

impl Handouts {
    /// None yet, for these streams of a feed.
    pub(super) fn new(feed: FeedId, streams: Seated) -> Self {
        Self { feed, streams, groups: Vec::new() }
    }

    /// Adds the events for a group, which follow those that were added before.
    pub(super) fn add(&mut self, group: &Group, payload: Arc<Payload>) {
        self.groups.push((group.members.clone(), payload));
    }

    /// Pushes everything. Returns the tasks to wake.
    #[must_use]
    pub(super) fn push(self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        self.pushes().for_each(|push| wakers.extend(push()));
        wakers
    }

    /// The pushes, in order.
    fn pushes(&self) -> impl Iterator<Item = impl FnOnce() -> Option<Waker>> {
        self.groups.iter().flat_map(move |(members, payload)| {
            let here = members.iter().filter_map(|member| Some((self.streams.get(member.outbox)?, member.watch)));
            here.map(move |(outbox, watch)| move || outbox.push(self.feed, watch, payload))
        })
    }
}

#[cfg(test)]
mod tests;
