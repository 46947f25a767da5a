//! [`Requests`]: reads the JSON values of a request's body as gRPC messages.
//!
//! A call with one request reads the whole body and takes its first value. A call with many requests takes each value
//! as it arrives. Always holds: a value has at most [`MAX_BODY`] bytes, and all values that are being read share a
//! memory limit. A large value is decoded on a thread for such work, so it delays no other task.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use thiserror::Error;
use tokio::{task::spawn_blocking, time::timeout};
use tonic::Status;

use super::{
    decode::{DecodeError, decode},
    scan::{Scanner, SyntaxError},
    schema::{MessageId, Schema},
};
use crate::{
    front::body::RequestBody,
    hub::room::{Full, Place},
};

/// Longest value in bytes: the largest request that is checked before it is forwarded, in base64.
const MAX_BODY: usize = 44 << 20;
/// A value of this length or more is decoded on a separate thread. Shorter ones take less than a millisecond.
const LARGE: usize = 64 << 10;
/// How long a body that has begun may stall.
const SILENCE: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Requests {
    schema: Arc<Schema>,
    message: MessageId,
    body: RequestBody,
    /// Bytes that arrived but were not read yet.
    buffer: BytesMut,
    place: Place,
    ended: bool,
}

/// Why there is no request.
#[derive(Debug, Error)]
pub(super) enum RequestError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("unexpected EOF")]
    Cut,
    #[error("etcd-relay: the request is larger than {} bytes", MAX_BODY)]
    TooLarge,
    #[error("{0}")]
    Full(&'static str),
    #[error("etcd-relay: the body stalled for a minute")]
    Stalled,
    #[error("etcd-relay: the request could not be read because of a fault in the relay")]
    Panicked,
}

impl From<SyntaxError> for RequestError {
    fn from(error: SyntaxError) -> Self {
        Self::Decode(error.into())
    }
}

impl RequestError {
    /// The status for the client. `decoding` is the code for a body that is not a valid request.
    pub(super) fn status(&self, decoding: tonic::Code) -> Status {
        let code = match self {
            Self::Decode(_) | Self::Cut => decoding,
            Self::TooLarge | Self::Full(_) => tonic::Code::ResourceExhausted,
            Self::Stalled => tonic::Code::Cancelled,
            Self::Panicked => tonic::Code::Internal,
        };
        Status::new(code, self.to_string())
    }
}

impl Requests {
    pub(super) fn new(schema: Arc<Schema>, message: MessageId, body: RequestBody, place: Place) -> Self {
        Self { schema, message, body, buffer: BytesMut::new(), place, ended: false }
    }

    /// Reads the request of a call with one request: the first value of the whole body. An empty body is an empty
    /// message.
    ///
    /// # Errors
    /// Fails if there is no valid request.
    pub(super) async fn only(mut self) -> Result<Bytes, RequestError> {
        while !self.ended {
            self.receive(true).await?;
        }
        match self.next().await? {
            Some(message) => Ok(message),
            None => read(self.schema, self.message, Bytes::from_static(b"null"), Scanner::new()).await,
        }
    }

    /// Reads the next request; `None` if there are no more.
    ///
    /// # Errors
    /// Fails if the next request is not valid. Nothing is read after that.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RequestError> {
        let mut scanner = Scanner::new();
        let mut scanned = 0;
        loop {
            let (taken, ended) = self.scan(&mut scanner, scanned).await?;
            scanned += taken;
            if ended || self.ended && scanner.ends() {
                let text = self.buffer.split_to(scanned).freeze();
                let message = read(self.schema.clone(), self.message, text, scanner).await?;
                if self.buffer.is_empty() {
                    // Its memory goes to other requests.
                    self.buffer = BytesMut::new();
                    self.place.shrink(0);
                }
                return Ok(Some(message));
            }
            if self.ended {
                return if scanner.has_begun() { Err(RequestError::Cut) } else { Ok(None) };
            }
            if !scanner.has_begun() {
                // Spaces between values.
                self.buffer.advance(scanned);
                (scanner, scanned) = (Scanner::new(), 0);
            }
            self.receive(scanner.has_begun()).await?;
        }
    }

    /// Waits for more of the body.
    async fn receive(&mut self, begun: bool) -> Result<(), RequestError> {
        let next = self.body.frame();
        let next = if begun { timeout(SILENCE, next).await.map_err(|_| RequestError::Stalled)? } else { next.await };
        match next {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { return Ok(()) };
                let len = self.buffer.len() + data.len();
                if len > MAX_BODY {
                    return Err(RequestError::TooLarge);
                }
                self.place.grow(len).await.map_err(|Full(text)| RequestError::Full(text))?;
                self.buffer.extend_from_slice(&data);
            }
            // Go's reader reports this for a body that ends too early.
            Some(Err(_)) => return Err(RequestError::Cut),
            None => self.ended = true,
        }
        Ok(())
    }

    /// Scans what has arrived since the last call.
    async fn scan(&mut self, scanner: &mut Scanner, from: usize) -> Result<(usize, bool), RequestError> {
        if self.buffer.len() - from < LARGE {
            return Ok(scanner.take(&self.buffer[from..])?);
        }
        // The buffer is moved there and back, so nothing is copied.
        let (buffer, mut scanning) = (std::mem::take(&mut self.buffer), std::mem::replace(scanner, Scanner::new()));
        let work = spawn_blocking(move || {
            let taken = scanning.take(&buffer[from..]);
            (buffer, scanning, taken)
        });
        let (buffer, scanned, taken) = work.await.map_err(|_| RequestError::Panicked)?;
        (self.buffer, *scanner) = (buffer, scanned);
        Ok(taken?)
    }
}

/// Decodes a value that was scanned to its end.
async fn read(schema: Arc<Schema>, message: MessageId, text: Bytes, scanner: Scanner) -> Result<Bytes, RequestError> {
    let extents = scanner.extents();
    if text.len() < LARGE {
        return Ok(decode(&schema, message, &text, &extents)?);
    }
    let work = spawn_blocking(move || decode(&schema, message, &text, &extents));
    Ok(work.await.map_err(|_| RequestError::Panicked)??)
}

#[cfg(test)]
mod tests;
