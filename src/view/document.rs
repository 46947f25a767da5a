//! [`Document`]: a value of etcd, reduced to what views and access rules read.
//!
//! Two values with equal documents look the same to everyone, and most writes need no further work. Rows and payloads
//! are in `views`. The engine makes a document once per change of a key. Always holds: a value is parsed as Go's
//! `encoding/json` parses it into Lainlet's types (`read`), but unused members may have any value.

mod node;
mod pod_group;
mod portal;
mod read;
mod repair;

use std::fmt;

pub(crate) use node::{Json, Node};
pub(crate) use pod_group::{Container, ContainerSpec, Pod, PodGroup, StreamPort};
pub(crate) use portal::{Client, Portal};
use read::Read;

/// The parsed form of the values in one directory of etcd.
pub(crate) trait Document: Sized + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Parses a value.
    ///
    /// # Errors
    ///
    /// Fails if the value is not such a document. The error contains nothing of the value.
    fn decode(value: &[u8]) -> Result<Self, DecodeError>;
}

/// Why a value is refused. Anyone may see the error, so it contains no text of the value, which may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// It is not a single JSON document.
    #[error("not one JSON document: line {line}, column {column}")]
    Syntax {
        /// From 1.
        line: usize,
        /// In bytes, from 1; 0 means the end of the previous line.
        column: usize,
    },
    /// A member has the wrong type, or a number is out of range.
    #[error("wrong type: {member}, line {line}, column {column}")]
    Type {
        /// The path of the member in the format's own words: `Spec.Pod.Containers[0].Expose`.
        member: Box<str>,
        /// From 1.
        line: usize,
        /// In bytes, from 1.
        column: usize,
    },
    /// The value is `null`, which is not allowed here.
    #[error("null")]
    Null,
}

/// A value below `/lain/config/`: any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigValue(Box<[u8]>);

impl ConfigValue {
    /// The stored bytes, which are usually but not always UTF-8.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Document for ConfigValue {
    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(value.into()))
    }
}

impl Document for PodGroup {
    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        Option::from_json(value)?.ok_or(DecodeError::Null)
    }
}

impl Document for Portal {
    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        Self::from_json(value)
    }
}

impl Document for Node {
    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        Self::from_json(value)
    }
}
