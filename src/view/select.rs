//! [`Select`]: what of a view is asked for, and which keys that is.
//!
//! Not here: how a request's parameters become one, see `lainlet`. Always holds: two equal selections show the same.

use super::projection::Spec;

/// Which keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Match {
    /// `*`.
    All,
    /// The key itself while it exists; otherwise all that begin with it. Not empty.
    Key(Box<[u8]>),
}

/// What of a view is asked for.
#[derive(Clone, Debug)]
pub(super) struct Select {
    /// The view.
    pub(super) spec: &'static Spec,
    /// Which keys.
    pub(super) keys: Match,
    /// The node, where [`Spec::of_node`].
    pub(super) node: Option<Box<str>>,
    /// Without secrets, for those who may not see them.
    pub(super) public: bool,
}

impl Select {
    /// Whether a match key is among those asked for, exactly or by its beginning.
    #[must_use]
    pub(super) fn matches(&self, key: &[u8]) -> bool {
        match &self.keys {
            Match::All => true,
            Match::Key(wanted) => key.starts_with(wanted),
        }
    }

    /// Whether this is the very key that was asked for.
    #[must_use]
    pub(super) fn is_exactly(&self, key: &[u8]) -> bool {
        matches!(&self.keys, Match::Key(wanted) if **wanted == *key)
    }
}

// By the view's address: there is one of each.
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
