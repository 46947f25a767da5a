//! [`Chunks`]: a list in chunks, of which a copy is made in a moment. A change after that copies the one chunk that it
//! concerns.
//!
//! Publishing takes such a copy under the feed's lock and goes through it afterwards. Used by `index` for the members
//! of a group, and by `places` for the streams of a feed. Always holds: every chunk but the last is full, and the last
//! is not empty. So a copy costs one pointer for each chunk, and a change never moves more than one item.

use std::sync::Arc;

use smallvec::SmallVec;

/// Chunks with memory for more items than this give it back when they use a quarter of it.
const KEPT: usize = 64;

/// A list; see the module. `SIZE` is the number of items in a chunk.
#[derive(Clone, Debug)]
pub(super) struct Chunks<T, const SIZE: usize>(SmallVec<[Arc<Chunk<T>>; 1]>);

/// Most lists have one item or two, which need no further allocation.
type Chunk<T> = SmallVec<[T; 2]>;

impl<T, const SIZE: usize> Default for Chunks<T, SIZE> {
    fn default() -> Self {
        Self(SmallVec::new())
    }
}

impl<T: Clone, const SIZE: usize> Chunks<T, SIZE> {
    pub(super) fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * SIZE + last.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.0.get(index / SIZE)?.get(index % SIZE)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        Arc::make_mut(self.0.get_mut(index / SIZE)?).get_mut(index % SIZE)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|chunk| chunk.iter())
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.0.last()?.last()
    }

    pub(super) fn push(&mut self, item: T) {
        match self.0.last_mut().filter(|last| last.len() < SIZE) {
            Some(last) => Arc::make_mut(last).push(item),
            None => self.0.push(Arc::new(Chunk::from_iter([item]))),
        }
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let last = Arc::make_mut(self.0.last_mut()?);
        let item = last.pop();
        if last.is_empty() {
            self.0.pop();
            if self.0.capacity() > KEPT && self.0.len() < self.0.capacity() / 4 {
                self.0.shrink_to_fit();
            }
        } else if last.capacity() > KEPT && last.len() < last.capacity() / 4 {
            last.shrink_to_fit();
        }
        item
    }

    /// Removes the item at `index`. The last one takes its place.
    pub(super) fn swap_remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len() {
            return None;
        }
        let last = self.pop()?;
        match self.get_mut(index) {
            Some(item) => Some(std::mem::replace(item, last)),
            None => Some(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Change {
        Push(u32),
        Pop,
        Set(usize, u32),
        SwapRemove(usize),
        Copy,
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            4 => any::<u32>().prop_map(Change::Push),
            1 => Just(Change::Pop),
            1 => (0..20_usize, any::<u32>()).prop_map(|(index, item)| Change::Set(index, item)),
            2 => (0..20_usize).prop_map(Change::SwapRemove),
            1 => Just(Change::Copy),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_list_and_copies_of_it_stay_as_they_were(changes in proptest::collection::vec(change(), 0..100)) {
            let (mut list, mut chunks) = (Vec::new(), Chunks::<u32, 4>::default());
            let mut copies = Vec::new();
            for change in changes {
                match change {
                    Change::Push(item) => {
                        list.push(item);
                        chunks.push(item);
                    }
                    Change::Pop => prop_assert_eq!(chunks.pop(), list.pop()),
                    Change::Set(index, item) => {
                        prop_assert_eq!(chunks.get_mut(index).map(|old| std::mem::replace(old, item)), list.get(index).copied());
                        if let Some(old) = list.get_mut(index) {
                            *old = item;
                        }
                    }
                    Change::SwapRemove(index) => {
                        let removed = (index < list.len()).then(|| list.swap_remove(index));
                        prop_assert_eq!(chunks.swap_remove(index), removed);
                    }
                    Change::Copy => copies.push((list.clone(), chunks.clone())),
                }
                copies.push((list.clone(), chunks.clone()));
                if copies.len() > 5 {
                    copies.remove(0);
                }
                for (list, chunks) in &copies {
                    prop_assert_eq!(&chunks.iter().copied().collect::<Vec<_>>(), list);
                    prop_assert_eq!((chunks.len(), chunks.is_empty(), chunks.last()), (list.len(), list.is_empty(), list.last()));
                    prop_assert!((0..20).all(|index| chunks.get(index) == list.get(index)));
                }
            }
        }
    }

    #[test]
    fn the_memory_of_many_items_goes_back() {
        let mut chunks = Chunks::<u64, 1024>::default();
        (0..100_000).for_each(|item| chunks.push(item));
        while chunks.len() > 10 {
            chunks.pop();
        }
        assert!(chunks.0.capacity() <= KEPT && chunks.0[0].capacity() <= KEPT, "{chunks:?}");
    }
}
