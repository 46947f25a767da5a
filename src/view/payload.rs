//! [`Version`]: what a target shows at a revision, and [`Payload`], its forms: JSON, a server-sent event, a gRPC
//! message.
//!
//! Always holds: a payload never changes. Each form is made at most once, by the first caller that needs it, and shared
//! by all.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::{
    listing::{Chunk, Listing},
    projection::{Shape, ViewError},
};

/// A form up to this size is put into one piece, because one buffer in the system call costs less than many.
const FLAT_MAX: usize = 64 << 10;

/// Bytes in pieces that read as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pieces: Arc<[Bytes]>,
    len: usize,
}

impl Parts {
    /// The pieces, none empty.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// Total length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes, copied.
    #[cfg(test)]
    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    fn new(pieces: Vec<Bytes>) -> Self {
        let len = pieces.iter().map(Bytes::len).sum();
        let pieces: Vec<Bytes> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        if len > FLAT_MAX || pieces.len() == 1 {
            return Self { pieces: pieces.into(), len };
        }
        let mut flat = BytesMut::with_capacity(len);
        pieces.iter().for_each(|piece| flat.extend_from_slice(piece));
        Self { pieces: Arc::from_iter((len > 0).then(|| flat.freeze())), len }
    }
}

/// The kind of an event in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first event of a stream.
    Init,
    /// Something changed.
    Update,
    /// Something changed, and the last change was a deletion.
    Delete,
}

impl Kind {
    /// Lainlet's name for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// What a target shows after a change.
#[derive(Debug)]
pub struct Version {
    /// [`Kind::Update`] or [`Kind::Delete`], depending on the last change that it shows.
    pub kind: Kind,
    /// The reply, or why there is none.
    pub body: Result<Payload, ViewError>,
    /// When the relay received the change, which is the start of the delivery delay.
    pub received: std::time::Instant,
}

impl Version {
    /// Equal for versions with the same content, and different otherwise.
    pub(super) fn state(&self) -> Result<u128, ViewError> {
        self.body.as_ref().map(|payload| payload.digest).map_err(|error| *error)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Payload {
    shape: Shape,
    chunks: Box<[Arc<Chunk>]>,
    digest: u128,
    json: OnceLock<Parts>,
    frames: [OnceLock<Parts>; 3],
    message: OnceLock<Parts>,
}

impl Payload {
    pub(super) fn new(shape: Shape, listing: &Listing) -> Self {
        Self {
            shape,
            chunks: listing.chunks().into(),
            digest: listing.digest(),
            json: OnceLock::new(),
            frames: Default::default(),
            message: OnceLock::new(),
        }
    }

    /// The JSON, as Lainlet's encoder writes it.
    pub fn json(&self) -> &Parts {
        self.json.get_or_init(|| Parts::new(self.json_between(Bytes::new(), Bytes::new())))
    }

    /// The server-sent event after its line `id: …`: kind, data, and the empty line.
    pub fn frame(&self, kind: Kind) -> &Parts {
        self.frames[kind as usize].get_or_init(|| {
            let head = format!("event: {}\ndata: ", kind.as_str());
            Parts::new(self.json_between(head.into(), Bytes::from_static(b"\n\n")))
        })
    }

    /// The encoded gRPC reply, whose field 1 is `Data`.
    pub fn message(&self) -> &Parts {
        self.message
            .get_or_init(|| Parts::new(self.chunks.iter().map(|chunk| chunk.message(self.shape).clone()).collect()))
    }

    fn json_between(&self, before: Bytes, after: Bytes) -> Vec<Bytes> {
        let (open, close) = match self.shape {
            Shape::Object | Shape::Groups => ("{", "}"),
            Shape::List | Shape::PackedList => ("[", "]"),
        };
        let mut pieces = vec![before, Bytes::from_static(open.as_bytes())];
        for (index, chunk) in self.chunks.iter().enumerate() {
            let json = chunk.json(self.shape);
            pieces.push(if index == 0 { json.slice(1..) } else { json.clone() });
        }
        pieces.extend([Bytes::from_static(close.as_bytes()), after]);
        pieces
    }
}
