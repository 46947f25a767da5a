//! [`Call`]: a request and its answer, from the first frame to the end.
//!
//! The request's body is polled here, by whoever waits for the answer or reads it. Most bodies are complete, so a call
//! locks the connection twice: to put its frames into the output, and to take the whole answer. Always holds: the body
//! is polled only after its last piece was sent; a call that is dropped leaves nothing at the connection, and is reset
//! unless it is over.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;

use super::{
    CallHead, Client, Lost, Shared,
    state::{Answer, State, Wakes, closed},
};

/// A call whose head of the answer has arrived; the body of the answer.
pub struct Call<B> {
    shared: Arc<Shared>,
    /// Its stream; `None` once nothing more is expected from it.
    place: Option<usize>,
    /// The rest of the request.
    upload: Option<Upload<B>>,
    /// What was taken of the answer and not read yet, if anything was.
    answer: Option<Box<Answer>>,
}

/// The body of a request, of which a piece may have been read already.
pub struct Upload<B> {
    body: B,
    first: Option<Bytes>,
}

/// Nothing of the call was sent.
#[derive(Debug, Error)]
#[error("{lost}")]
pub struct Unsent<B> {
    /// The request's body.
    pub upload: Upload<B>,
    /// Why.
    pub lost: Lost,
}

/// The next piece of a request.
enum Piece {
    Data(Bytes, bool),
    End,
    Later,
    Broken,
}

impl Client {
    /// Makes a call, and waits for the head of the answer. The rest of the answer is the body of the response. Cancel
    /// safe: a call that is dropped is reset.
    ///
    /// # Errors
    /// The inner error is that of a call that was sent.
    pub async fn call<B>(&self, head: CallHead<'_>, body: B) -> Result<Result<Response<Call<B>>, Lost>, Box<Unsent<B>>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut upload = Some(Upload { body, first: None });
        let mut call = None;
        let answered = poll_fn(|cx| {
            let call = match (&mut call, upload.take()) {
                (Some(call), _) => call,
                (None, Some(upload)) => match self.open(&head, upload, cx) {
                    Ok(opened) => call.insert(opened),
                    Err(unsent) => return Poll::Ready(Err(unsent)),
                },
                (None, None) => return Poll::Pending,
            };
            call.poll_head(cx).map(Ok)
        })
        .await?;
        Ok(match (answered, call) {
            (Ok((status, headers)), Some(call)) => {
                let mut response = Response::new(call);
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                *response.version_mut() = http::Version::HTTP_2;
                Ok(response)
            }
            (Err(lost), _) => Err(lost),
            (Ok(_), None) => Err(Lost::Request),
        })
    }

    /// Opens the stream of a call, and sends what there is of the request.
    fn open<B>(
        &self,
        head: &CallHead<'_>,
        mut upload: Upload<B>,
        cx: &mut Context<'_>,
    ) -> Result<Call<B>, Box<Unsent<B>>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let shared = &self.open.shared;
        let piece = upload.poll(cx);
        if matches!(piece, Piece::Broken) {
            let answer = Answer { end: Some(Err(Lost::Request)), ..Answer::default() };
            return Ok(Call { shared: shared.clone(), place: None, upload: None, answer: Some(Box::new(answer)) });
        }
        let mut wakes = Wakes::new();
        let mut state = shared.state.lock();
        let Some(place) = state.open(head) else {
            let lost = closed(&state.phase);
            shared.closed.store(state.is_closed(), Ordering::Relaxed);
            drop(state);
            upload.first = match piece {
                Piece::Data(data, _) => Some(data),
                Piece::End | Piece::Later | Piece::Broken => None,
            };
            return Err(Box::new(Unsent { upload, lost }));
        };
        wakes.extend(state.task.take());
        let mut call = Call { shared: shared.clone(), place: Some(place), upload: None, answer: None };
        match piece {
            Piece::Data(data, ends) => {
                state.offer(place, data, ends, &mut wakes);
                call.upload = (!ends).then_some(upload);
            }
            Piece::End => state.offer(place, Bytes::new(), true, &mut wakes),
            Piece::Later | Piece::Broken => call.upload = Some(upload),
        }
        drop(state);
        wake(wakes);
        Ok(call)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Call<B> {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(http::StatusCode, HeaderMap), Lost>> {
        self.upload(cx);
        if !self.take(cx, |answer| answer.head.is_some()) {
            return Poll::Pending;
        }
        let answer = self.answer.get_or_insert_default();
        if let Some(head) = answer.head.take() {
            return Poll::Ready(Ok(head));
        }
        Poll::Ready(Err(match answer.end.take() {
            Some(Err(lost)) => lost,
            _ => Lost::Unusable(h2::Reason::PROTOCOL_ERROR),
        }))
    }

    /// Sends what can be sent of the rest of the request.
    fn upload(&mut self, cx: &mut Context<'_>) {
        while let (Some(upload), Some(place)) = (&mut self.upload, self.place) {
            {
                let mut state = self.shared.state.lock();
                let slot = state.slot(place);
                if slot.sent || slot.answer.end.is_some() {
                    // The answer came first; the rest does not matter.
                    self.upload = None;
                    return;
                }
                if !slot.has_room() {
                    slot.wait(cx.waker());
                    return;
                }
            }
            let piece = upload.poll(cx);
            let (data, ends) = match piece {
                Piece::Later => return,
                Piece::Data(data, ends) => (data, ends),
                Piece::End => (Bytes::new(), true),
                Piece::Broken => {
                    self.leave();
                    self.upload = None;
                    self.answer.get_or_insert_default().end = Some(Err(Lost::Request));
                    return;
                }
            };
            if ends {
                self.upload = None;
            }
            self.locked(|state, wakes| state.offer(place, data, ends, wakes));
        }
    }

    /// Takes what has arrived. Returns whether that is what `wanted` says, or the end; otherwise the task is woken when
    /// there is more.
    fn take(&mut self, cx: &Context<'_>, wanted: impl Fn(&Answer) -> bool) -> bool {
        let Some(place) = self.place else { return true };
        let mut wakes = Wakes::new();
        let mut state = self.shared.state.lock();
        let slot = state.slot(place);
        if slot.answer.end.is_some() {
            self.answer = Some(state.close(place, &mut wakes));
            self.place = None;
        } else if wanted(&slot.answer) {
            let taken = self.answer.get_or_insert_default();
            taken.head = slot.answer.head.take();
            // One piece at a time, since what is taken makes room for more.
            if let Some(data) = slot.answer.data.pop_front() {
                let bytes = data.len();
                taken.data.push_back(data);
                state.count_read(place, bytes, &mut wakes);
            }
        } else {
            slot.wait(cx.waker());
            return false;
        }
        drop(state);
        wake(wakes);
        true
    }
}

impl<B> Call<B> {
    fn locked(&self, with: impl FnOnce(&mut State, &mut Wakes)) {
        let mut wakes = Wakes::new();
        with(&mut self.shared.state.lock(), &mut wakes);
        wake(wakes);
    }

    /// Gives the stream back.
    fn leave(&mut self) {
        if let Some(place) = self.place.take() {
            let mut answer = None;
            self.locked(|state, wakes| answer = Some(state.close(place, wakes)));
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Call<B> {
    type Data = Bytes;
    type Error = Lost;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        let this = self.get_mut();
        if this.answer.as_ref().is_none_or(|answer| answer.data.is_empty()) {
            this.upload(cx);
            if !this.take(cx, |answer| !answer.data.is_empty()) {
                return Poll::Pending;
            }
        }
        let answer = this.answer.get_or_insert_default();
        if let Some(data) = answer.data.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = answer.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        match &mut answer.end {
            Some(end) => match std::mem::replace(end, Ok(())) {
                Ok(()) => Poll::Ready(None),
                Err(lost) => Poll::Ready(Some(Err(lost))),
            },
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_read =
            |answer: &Answer| answer.data.is_empty() && answer.trailers.is_none() && answer.end == Some(Ok(()));
        self.answer.as_ref().is_some_and(|answer| is_read(answer))
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

impl<B> Drop for Call<B> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<B> fmt::Debug for Call<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("place", &self.place).finish_non_exhaustive()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Upload<B> {
    /// The next piece. Trailers of requests have no meaning in gRPC, and are dropped.
    fn poll(&mut self, cx: &mut Context<'_>) -> Piece {
        if let Some(first) = self.first.take() {
            return Piece::Data(first, self.body.is_end_stream());
        }
        loop {
            return match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => Piece::Later,
                Poll::Ready(None) => Piece::End,
                Poll::Ready(Some(Err(_))) => Piece::Broken,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => Piece::Data(data, self.body.is_end_stream()),
                    Err(_) => continue,
                },
            };
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Upload<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        Pin::new(&mut this.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }
}

impl<B> fmt::Debug for Upload<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}

fn wake(wakes: Wakes) {
    wakes.into_iter().for_each(std::task::Waker::wake);
}
