//! [`Text`]: an answer that several clients may read, and the client that it counts for.
//!
//! The room is in `room`. Always holds: a text counts for one of its readers, and for the first one as long as that one
//! reads it. It does not count for a client that has stopped reading while others continue.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{hub::room::Place, types::ClientKey};

/// See the module.
#[derive(Debug)]
pub(super) struct Text {
    bytes: Bytes,
    readers: Mutex<Readers>,
}

#[derive(Debug)]
struct Readers {
    place: Place,
    clients: BTreeMap<ClientKey, usize>,
}

/// A text that one client reads.
struct Reading {
    text: Arc<Text>,
    client: ClientKey,
}

impl AsRef<[u8]> for Reading {
    fn as_ref(&self) -> &[u8] {
        &self.text.bytes
    }
}

impl Text {
    pub(super) fn new(bytes: impl Into<Bytes>, place: Place) -> Arc<Self> {
        Arc::new(Self { bytes: bytes.into(), readers: Mutex::new(Readers { place, clients: BTreeMap::new() }) })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The text for a client, which reads it until it drops this.
    pub(super) fn read_by(self: &Arc<Self>, client: ClientKey) -> Bytes {
        {
            let mut readers = self.readers.lock();
            if readers.place.is_empty() {
                // A short text is not counted.
                return self.bytes.clone();
            }
            if readers.clients.is_empty() && readers.place.client() != client {
                readers.place.pass_to(client);
            }
            *readers.clients.entry(client).or_default() += 1;
        }
        Bytes::from_owner(Reading { text: self.clone(), client })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut guard = self.text.readers.lock();
        let Readers { place, clients } = &mut *guard;
        let Some(reads) = clients.get_mut(&self.client) else { return };
        *reads -= 1;
        if *reads > 0 {
            return;
        }
        clients.remove(&self.client);
        if place.client() == self.client
            && let Some(other) = clients.keys().next()
        {
            place.pass_to(*other);
        }
    }
}
