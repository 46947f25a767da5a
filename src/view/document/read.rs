//! [`Read`]: parses JSON like Go's `encoding/json` parses it into a struct, using serde_json.
//!
//! serde's own derive would refuse `null`, repeated members and names in another case, and would parse members that
//! nobody needs. The documents beside it use it and name their members with [`object!`]. Always holds: an absent member
//! and `null` give the default. Of repeated members the last counts. Other members are skipped without a copy. An error
//! contains nothing of the value.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::BTreeMap,
    fmt::{self, Write as _},
    marker::PhantomData,
};

use serde::{
    Deserialize as _, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{DecodeError, repair::repair};

/// A type that can be parsed from JSON. Its default stands for `null` and for an absent member.
pub(super) trait Read: Default {
    /// Parses a value. After an error, `trail` contains the path to it.
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error>;

    /// Parses a whole document.
    fn from_json(json: &[u8]) -> Result<Self, DecodeError> {
        parse(json).or_else(|error| match repair(json) {
            Cow::Borrowed(_) => Err(error),
            // Go repairs invalid text, which serde_json refuses. Few values need it, so this is tried last.
            Cow::Owned(repaired) => parse(&repaired),
        })
    }
}

fn parse<T: Read>(json: &[u8]) -> Result<T, DecodeError> {
    let trail = Trail::default();
    let mut from = serde_json::Deserializer::from_slice(json);
    T::read(&mut from, &trail).and_then(|read| from.end().map(|()| read)).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        // serde_json reports `2.0` for an integer as an error of syntax, which it is not.
        match serde_json::from_slice::<IgnoredAny>(json) {
            Ok(_) => DecodeError::Type { member: trail.path(), line, column },
            Err(error) => DecodeError::Syntax { line: error.line(), column: error.column() },
        }
    })
}

/// A struct whose members have JSON names. Implemented by [`object!`].
pub(super) trait Object: Default {
    /// The names in the usual case.
    const NAMES: &'static [&'static str];

    /// Parses the member `name`, one of [`Object::NAMES`].
    fn read_member<'de, A: MapAccess<'de>>(&mut self, name: &'static str, from: Member<'_, A>) -> Result<(), A::Error>;
}

/// Implements [`Object`] from a list of fields and their JSON names.
macro_rules! object {
    ($object:ty { $($name:literal => $field:ident),+ $(,)? }) => {
        impl $crate::view::document::read::Object for $object {
            const NAMES: &'static [&'static str] = &[$($name),+];

            fn read_member<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                name: &'static str,
                from: $crate::view::document::read::Member<'_, A>,
            ) -> Result<(), A::Error> {
                match name {
                    $($name => self.$field = from.read(name)?,)+
                    _ => from.skip()?,
                }
                Ok(())
            }
        }
    };
}
pub(super) use object;

/// The value of a member that is still to be parsed.
pub(super) struct Member<'a, A> {
    map: &'a mut A,
    trail: &'a Trail,
}

impl<'de, A: MapAccess<'de>> Member<'_, A> {
    /// Parses it.
    pub(super) fn read<T: Read>(self, name: &'static str) -> Result<T, A::Error> {
        self.map.next_value_seed(As::new(self.trail)).inspect_err(|_| self.trail.came_from(Step::Member(name)))
    }

    /// Skips it.
    pub(super) fn skip(self) -> Result<(), A::Error> {
        self.map.next_value::<IgnoredAny>().map(|_| ())
    }
}

impl<T: Object> Read for T {
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error> {
        struct Members<'a, T>(As<'a, T>);

        impl<'de, T: Object> Visitor<'de> for Members<'_, T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
                let mut object = T::default();
                while let Some(name) = map.next_key_seed(OneOf(T::NAMES))? {
                    let member = Member { map: &mut map, trail: self.0.trail };
                    match name {
                        Some(name) => object.read_member(name, member)?,
                        None => member.skip()?,
                    }
                }
                Ok(object)
            }
        }

        from.deserialize_any(Members(As::new(trail)))
    }
}

impl Read for Box<str> {
    fn read<'de, D: Deserializer<'de>>(from: D, _: &Trail) -> Result<Self, D::Error> {
        Option::deserialize(from).map(Option::unwrap_or_default)
    }
}

impl Read for i64 {
    fn read<'de, D: Deserializer<'de>>(from: D, _: &Trail) -> Result<Self, D::Error> {
        // serde_json parses an i128, and only that type, from nothing but digits and a sign. So `-0` is accepted and
        // `2.0` is not.
        let number = Option::<i128>::deserialize(from)?.unwrap_or_default();
        Self::try_from(number).map_err(|_| D::Error::custom("out of range"))
    }
}

/// For values where `null` differs from empty.
impl<T: Read> Read for Option<T> {
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error> {
        struct Nullable<'a, T>(As<'a, T>);

        impl<'de, T: Read> Visitor<'de> for Nullable<'_, T> {
            type Value = Option<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or null")
            }

            fn visit_none<E>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
                self.0.deserialize(from).map(Some)
            }
        }

        from.deserialize_option(Nullable(As::new(trail)))
    }
}

impl<T: Read> Read for Box<[T]> {
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error> {
        let mut list = Vec::new();
        each(from, trail, |item| list.push(item))?;
        Ok(list.into())
    }
}

/// Parses an array item by item.
pub(super) fn each<'de, D, T>(from: D, trail: &Trail, take: impl FnMut(T)) -> Result<(), D::Error>
where
    D: Deserializer<'de>,
    T: Read,
{
    struct Items<'a, T, F>(As<'a, T>, F);

    impl<'de, T: Read, F: FnMut(T)> Visitor<'de> for Items<'_, T, F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            let Self(As { trail, .. }, mut take) = self;
            for index in 0.. {
                match seq.next_element_seed(As::new(trail)).inspect_err(|_| trail.came_from(Step::Item(index)))? {
                    Some(item) => take(item),
                    None => break,
                }
            }
            Ok(())
        }
    }

    from.deserialize_any(Items(As::new(trail), take))
}

impl<T: Read> Read for BTreeMap<Box<str>, T> {
    fn read<'de, D: Deserializer<'de>>(from: D, trail: &Trail) -> Result<Self, D::Error> {
        struct Entries<'a, T>(As<'a, T>);

        impl<'de, T: Read> Visitor<'de> for Entries<'_, T> {
            type Value = BTreeMap<Box<str>, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(BTreeMap::new())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let trail = self.0.trail;
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key()? {
                    let value = map.next_value_seed(As::new(trail)).inspect_err(|_| trail.came_from(Step::Entry))?;
                    entries.insert(key, value);
                }
                Ok(entries)
            }
        }

        from.deserialize_any(Entries(As::new(trail)))
    }
}

/// Parses a `T` where serde expects a seed.
pub(super) struct As<'a, T> {
    trail: &'a Trail,
    read: PhantomData<T>,
}

impl<'a, T> As<'a, T> {
    pub(super) fn new(trail: &'a Trail) -> Self {
        Self { trail, read: PhantomData }
    }
}

impl<'de, T: Read> DeserializeSeed<'de> for As<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<T, D::Error> {
        T::read(from, self.trail)
    }
}

/// Parses a member's name: an exact match, or else one that differs only in case, or else none.
struct OneOf(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for OneOf {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        // Not checked to be UTF-8, which takes time: invalid text matches none of the names.
        from.deserialize_bytes(self)
    }
}

impl Visitor<'_> for OneOf {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_bytes<E>(self, name: &[u8]) -> Result<Self::Value, E> {
        let find = |same: fn(&[u8], &[u8]) -> bool| self.0.iter().find(|known| same(known.as_bytes(), name));
        Ok(find(<[u8]>::eq).or_else(|| find(<[u8]>::eq_ignore_ascii_case)).copied())
    }
}

/// The path to an error, filled from its end while the error is passed on. It costs nothing without an error.
#[derive(Default)]
pub(super) struct Trail(RefCell<Vec<Step>>);

enum Step {
    Member(&'static str),
    Item(usize),
    /// In a map. Its key is part of the value, which no error shows.
    Entry,
}

impl Trail {
    fn came_from(&self, step: Step) {
        self.0.borrow_mut().push(step);
    }

    fn path(&self) -> Box<str> {
        let mut path = String::new();
        for step in self.0.borrow().iter().rev() {
            let dot = if path.is_empty() { "" } else { "." };
            let written = match step {
                Step::Member(name) => write!(path, "{dot}{name}"),
                Step::Item(index) => write!(path, "[{index}]"),
                Step::Entry => write!(path, "{dot}*"),
            };
            written.expect("writing to a string cannot fail");
        }
        if path.is_empty() { "the document".into() } else { path.into() }
    }
}
