//! [`Listing`]: the rows of a target in the order of its reply, in chunks that versions share.
//!
//! The choice of rows is in `target`. The engine writes it, and payloads read it. Always holds:
//! - rows are sorted by group, then by order, then by etcd key; of rows with the same group and order, the last is
//!   shown;
//! - rows of one group (or, without groups, of one order) are in one chunk, so a chunk is rendered without its
//!   neighbours;
//! - a change costs the chunk that it belongs to and a pointer for each other chunk, not a walk over all rows;
//! - equal digests mean equal replies, and different digests different replies. A digest is a keyed 128-bit hash of
//!   what is shown and in which order, independent of the etcd keys, so nobody can construct a collision.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    sync::{Arc, LazyLock, OnceLock},
};

use bytes::Bytes;

use super::{
    projection::{Pods, Shape},
    wire,
};
use crate::view::json;

/// Most rows of a chunk, unless they must stay together. Rendering one copies about ten KiB.
const CHUNK_MAX: usize = 32;

/// The secret keys of the digests.
static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(|| [RandomState::new(), RandomState::new()]);

/// The factor by which the hash of a sequence is multiplied for each further row. Of the remainders of odd numbers
/// modulo 8, this one gives the longest period of powers.
static BASE: LazyLock<u128> = LazyLock::new(|| hash(&()) & !7 | 5);

fn hash(of: &impl Hash) -> u128 {
    let [high, low] = [0, 1].map(|half| u128::from(KEYS[half].hash_one(of)));
    high << 64 | low
}

/// A hash of a sequence of rows that does not depend on how the sequence is split.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Digest {
    hash: u128,
    /// The base to the power of the sequence's length.
    power: u128,
}

impl Default for Digest {
    /// Of no row.
    fn default() -> Self {
        Self { hash: 0, power: 1 }
    }
}

impl Digest {
    fn of(row: &Row) -> Self {
        Self { hash: row.digest, power: *BASE }
    }

    fn then(self, next: Self) -> Self {
        Self {
            hash: self.hash.wrapping_mul(next.power).wrapping_add(next.hash),
            power: self.power.wrapping_mul(next.power),
        }
    }
}

/// A key's part of a reply, or one of several such parts.
#[derive(Debug)]
pub(super) struct Row {
    group: Option<Box<[u8]>>,
    order: Box<[u8]>,
    key: Bytes,
    json: Box<[u8]>,
    message: Box<[u8]>,
    digest: u128,
    pub(super) pods: Pods,
}

impl Row {
    pub(super) fn new(
        group: Option<&[u8]>,
        order: &[u8],
        key: Bytes,
        json: Vec<u8>,
        message: Vec<u8>,
        pods: Pods,
    ) -> Self {
        // The order is left out. It is usually the key, and where it is not shown it makes no difference.
        let digest = hash(&(group, &json));
        Self {
            group: group.map(Into::into),
            order: order.into(),
            key,
            json: json.into(),
            message: message.into(),
            digest,
            pods,
        }
    }

    /// Rows with the same unit must stay together, since they are rendered together.
    fn unit(&self) -> &[u8] {
        self.group.as_deref().unwrap_or(&self.order)
    }

    fn place(&self) -> (&[u8], &[u8], &[u8]) {
        (self.unit(), &self.order, &self.key)
    }

    /// Whether another row of the same document has the same content, so nothing needs to change.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.digest == other.digest && self.order == other.order && self.pods == other.pods
    }

    fn is_shadowed_by(&self, next: &Self) -> bool {
        self.group == next.group && self.order == next.order
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.order.len() + self.json.len() + self.message.len()
    }
}

/// Neighbouring rows, rendered once in each form.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    rows: Vec<Arc<Row>>,
    digest: Digest,
    pods: Pods,
    json: OnceLock<Bytes>,
    message: OnceLock<Bytes>,
}

impl Clone for Chunk {
    /// Without the rendered forms, because the copy is made in order to change it.
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), digest: self.digest, pods: self.pods, ..Self::default() }
    }
}

impl Chunk {
    fn of(rows: Vec<Arc<Row>>) -> Self {
        let mut chunk = Self { rows, ..Self::default() };
        chunk.recount();
        chunk
    }

    fn shown(&self) -> impl Iterator<Item = &Row> {
        let shadowed = |index: usize, row: &Row| self.rows.get(index + 1).is_some_and(|next| row.is_shadowed_by(next));
        self.rows.iter().enumerate().filter(move |(index, row)| !shadowed(*index, row)).map(|(_, row)| &**row)
    }

    fn recount(&mut self) {
        let (mut digest, mut pods) = (Digest::default(), Pods::default());
        for row in self.shown() {
            digest = digest.then(Digest::of(row));
        }
        // Pods count even if another key's row is shown instead.
        for row in &self.rows {
            pods.all += row.pods.all;
            pods.alive += row.pods.alive;
        }
        (self.digest, self.pods) = (digest, pods);
        (self.json, self.message) = Default::default();
    }

    /// Its part of the JSON reply, with a comma before each element.
    pub(super) fn json(&self, shape: Shape) -> &Bytes {
        self.json.get_or_init(|| {
            let mut json = Vec::with_capacity(self.rows.iter().map(|row| row.json.len() + 1).sum());
            let mut group = None;
            for row in self.shown() {
                match shape {
                    Shape::Groups if group == Some(row.unit()) => json.push(b','),
                    Shape::Groups => {
                        json.extend_from_slice(if group.is_some() { b"]," } else { b"," });
                        json::write_string(&mut json, row.unit());
                        json.extend_from_slice(b":[");
                        group = Some(row.unit());
                    }
                    Shape::Object | Shape::List | Shape::PackedList => json.push(b','),
                }
                json.extend_from_slice(&row.json);
            }
            if group.is_some() {
                json.push(b']');
            }
            json.into()
        })
    }

    /// Its part of the gRPC reply.
    pub(super) fn message(&self, shape: Shape) -> &Bytes {
        self.message.get_or_init(|| {
            let rows: Vec<u8> = self.shown().flat_map(|row| row.message.iter().copied()).collect();
            match shape {
                Shape::Object | Shape::List => rows.into(),
                Shape::PackedList => {
                    let mut message = Vec::with_capacity(rows.len() + 6);
                    wire::put_delimited(&mut message, 1, &rows);
                    message.into()
                }
                Shape::Groups => self.grouped_message().into(),
            }
        })
    }

    fn grouped_message(&self) -> Vec<u8> {
        let mut message = Vec::new();
        let shown: Vec<&Row> = self.shown().collect();
        for rows in shown.chunk_by(|row, next| row.group == next.group) {
            let len = rows.iter().map(|row| row.message.len()).sum();
            wire::put_entry_head(&mut message, 1, &wire::text(rows[0].unit()), len);
            rows.iter().for_each(|row| message.extend_from_slice(&row.message));
        }
        message
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    chunks: Vec<Arc<Chunk>>,
    rows: usize,
    bytes: usize,
}

impl Listing {
    pub(super) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Approximate memory of its rows.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn chunks(&self) -> &[Arc<Chunk>] {
        &self.chunks
    }

    /// A hash of what is shown.
    pub(super) fn digest(&self) -> u128 {
        self.chunks.iter().fold(Digest::default(), |digest, chunk| digest.then(chunk.digest)).hash
    }

    /// The pods behind all rows.
    pub(super) fn pods(&self) -> Pods {
        self.chunks.iter().fold(Pods::default(), |sum, chunk| Pods {
            all: sum.all + chunk.pods.all,
            alive: sum.alive + chunk.pods.alive,
        })
    }

    /// Inserts a row, after an existing row at its place.
    pub(super) fn insert(&mut self, row: Arc<Row>) {
        self.rows += 1;
        self.bytes += row.bytes();
        let Some(index) = self.chunk_of(&row) else {
            self.chunks.push(Arc::new(Chunk::of(vec![row])));
            return;
        };
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        let place = chunk.rows.partition_point(|other| other.place() <= row.place());
        chunk.rows.insert(place, row);
        let split = (chunk.rows.len() > CHUNK_MAX).then(|| boundary(&chunk.rows)).flatten();
        let right = split.map(|at| chunk.rows.split_off(at));
        chunk.recount();
        if let Some(right) = right {
            self.chunks.insert(index + 1, Arc::new(Chunk::of(right)));
        }
    }

    /// Removes a row that was inserted.
    pub(super) fn remove(&mut self, row: &Row) {
        let Some(index) = self.chunk_of(row) else { return };
        let chunk = Arc::make_mut(&mut self.chunks[index]);
        let Ok(place) = chunk.rows.binary_search_by(|other| other.place().cmp(&row.place())) else { return };
        chunk.rows.remove(place);
        chunk.recount();
        let left = chunk.rows.len();
        self.rows -= 1;
        self.bytes -= row.bytes();
        if left == 0 {
            self.chunks.remove(index);
        } else if let Some(next) = self.chunks.get(index + 1)
            && left + next.rows.len() <= CHUNK_MAX / 2
        {
            let next = self.chunks.remove(index + 1);
            let chunk = Arc::make_mut(&mut self.chunks[index]);
            chunk.rows.extend(next.rows.iter().cloned());
            chunk.recount();
        }
    }

    /// The chunk that a row belongs to: the last one that begins at or before its unit.
    fn chunk_of(&self, row: &Row) -> Option<usize> {
        let after =
            self.chunks.partition_point(|chunk| chunk.rows.first().is_some_and(|first| first.unit() <= row.unit()));
        if self.chunks.is_empty() { None } else { Some(after.saturating_sub(1)) }
    }
}

/// A place near the middle where rows may be split.
fn boundary(rows: &[Arc<Row>]) -> Option<usize> {
    let middle = rows.len() / 2;
    let parts = |at: &usize| rows[at - 1].unit() != rows[*at].unit();
    (middle..rows.len()).find(parts).or_else(|| (1..middle).rev().find(parts))
}

#[cfg(test)]
mod tests;
