//! [`Select`]: the requested part of a view, and the keys that match it.
//!
//! A request's parameters are translated in `lainlet`. Always holds: equal selections show the same.

use super::projection::Spec;

/// The requested keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Match {
    /// `*`.
    All,
    /// This key if it exists, otherwise all keys with this prefix. Not empty.
    Key(Box<[u8]>),
}

/// The requested part of a view.
#[derive(Clone, Debug)]
pub(super) struct Select {
    /// The view.
    pub(super) spec: &'static Spec,
    /// The requested keys.
    pub(super) keys: Match,
    /// The node, if [`Spec::of_node`] is set.
    pub(super) node: Option<Box<str>>,
    /// Whether secrets are left out, for callers that may not see them.
    pub(super) public: bool,
}

impl Select {
    /// Whether a match key is requested, exactly or by its prefix.
    #[must_use]
    pub(super) fn matches(&self, key: &[u8]) -> bool {
        match &self.keys {
            Match::All => true,
            Match::Key(wanted) => key.starts_with(wanted),
        }
    }

    /// Whether this is exactly the requested key.
    #[must_use]
    pub(super) fn is_exactly(&self, key: &[u8]) -> bool {
        matches!(&self.keys, Match::Key(wanted) if **wanted == *key)
    }
}

// Compares the address of the view, of which there is only one.
impl PartialEq for Select {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.spec, other.spec)
            && self.keys == other.keys
            && self.node == other.node
            && self.public == other.public
    }
}

impl Eq for Select {}

impl std::hash::Hash for Select {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::ptr::hash(self.spec, state);
        self.keys.hash(state);
        self.node.hash(state);
        self.public.hash(state);
    }
}
