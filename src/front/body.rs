//! The bodies on a port: [`RequestBody`] for requests of all protocols, and [`PortBody`] for handlers that answer in
//! different ways.
//!
//! Always holds: a handler's buffers reach the connection unboxed and uncopied, which keeps deliveries cheap.

use std::{
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use tonic::body::Body;

use crate::http2;

/// Any error, in the form that hyper accepts.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request.
#[derive(Debug)]
pub enum RequestBody {
    /// Over HTTP/1.1.
    Http1(Incoming),
    /// Over HTTP/2.
    Http2(http2::Body),
    /// Made by the relay from another request.
    Made(Body),
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Made(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Made(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Made(body) => body.size_hint(),
        }
    }
}

/// The body of a local handler, or of any other answer.
#[derive(Debug)]
pub enum PortBody<B: http_body::Body> {
    /// A local handler's own body.
    Local(B),
    /// A body that was made from such a body, and passes its buffers on.
    Made(UnsyncBoxBody<PortBuf<B::Data>, BoxError>),
    /// A forwarded or plain answer.
    Plain(Body),
}

/// The data of a [`PortBody`].
#[derive(Debug)]
pub enum PortBuf<D> {
    /// A local handler's own buffer.
    Local(D),
    /// Plain bytes.
    Plain(Bytes),
}

impl<B> http_body::Body for PortBody<B>
where
    B: http_body::Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = PortBuf<B::Data>;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, BoxError>>> {
        match self.get_mut() {
            Self::Local(body) => {
                Pin::new(body).poll_frame(cx).map_ok(|frame| frame.map_data(PortBuf::Local)).map_err(Into::into)
            }
            Self::Made(body) => Pin::new(body).poll_frame(cx),
            Self::Plain(body) => {
                Pin::new(body).poll_frame(cx).map_ok(|frame| frame.map_data(PortBuf::Plain)).map_err(Into::into)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(body) => body.is_end_stream(),
            Self::Made(body) => body.is_end_stream(),
            Self::Plain(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(body) => body.size_hint(),
            Self::Made(body) => body.size_hint(),
            Self::Plain(body) => body.size_hint(),
        }
    }
}

impl<D: Buf> Buf for PortBuf<D> {
    fn remaining(&self) -> usize {
        match self {
            Self::Local(data) => data.remaining(),
            Self::Plain(data) => data.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Local(data) => data.chunk(),
            Self::Plain(data) => data.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Local(data) => data.chunks_vectored(slices),
            Self::Plain(data) => data.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Local(data) => data.advance(count),
            Self::Plain(data) => data.advance(count),
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        match self {
            Self::Local(data) => data.copy_to_bytes(len),
            Self::Plain(data) => data.copy_to_bytes(len),
        }
    }
}
