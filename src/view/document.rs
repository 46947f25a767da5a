//! [`Document`]: a value of etcd, decoded to what views and access rules read of it, and nothing else.
//!
//! So two values whose documents are equal look the same to everyone, and most writes end here. Not here: rows and
//! payloads, see `views`. Made by the engine, once a change of a key. Always holds: a value is read as Go's `encoding/json`
//! reads it into Lainlet's types (`read`), but members that nobody reads may hold anything.

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

/// What is read of the values below one directory of etcd.
pub(crate) trait Document: Sized + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// Decodes a value.
    ///
    /// # Errors
    ///
    /// The value is no such document. Whoever shows the error shows nothing of the value.
    fn decode(value: &[u8]) -> Result<Self, DecodeError>;
}

/// Why a value is refused. Anyone may see it, so it has no text out of the value, which may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// It is not exactly one JSON document.
    #[error("not one JSON document: line {line}, column {column}")]
    Syntax {
        /// From 1.
        line: usize,
        /// In bytes, from 1; 0 at the end of the line before.
        column: usize,
    },
    /// A member that is read has another type, or a number is out of range.
    #[error("wrong type: {member}, line {line}, column {column}")]
    Type {
        /// The way there, in the words of the format: `Spec.Pod.Containers[0].Expose`.
        member: Box<str>,
        /// From 1.
        line: usize,
        /// In bytes, from 1.
        column: usize,
    },
    /// It is `null`, and there is no such thing as an absent one.
    #[error("null")]
    Null,
}

/// A value below `/lain/config/`: any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigValue(Box<[u8]>);

impl ConfigValue {
    /// The value as it is stored; most often, but not always, UTF-8.
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
