//! [`Forms`]: reads the bodies of requests if they are forms.
//!
//! The content of a form is in `fields`. Always holds: a body has at most [`MAX_BODY`] bytes in memory. All bodies
//! share a limit, and each client has a share of it. A stalled body keeps its room for [`SILENCE`] at most. A body that
//! ends too early is not a form.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::{
    answer::Refusal,
    fields::{Body, MAX_BODY},
    media::is_form,
};
use crate::{
    hub::room::{Place, Room},
    types::ClientKey,
};

/// Memory for all bodies.
const ROOM: usize = 256 << 20;
/// How long a body may stall.
const SILENCE: Duration = Duration::from_secs(60);
/// How much of a body that is too large is read and dropped: a client that gets an answer before it has sent everything
/// may not see it.
const PASSED_OVER: usize = 64 << 20;
/// How long a body that is too large may stall.
const IMPATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Forms {
    room: Room,
}

/// A body. It occupies its part of the room until it is dropped.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) body: Body,
    _place: Place,
}

impl Forms {
    pub(super) fn new() -> Self {
        Self { room: Room::new(ROOM, "etcd-relay: too many large requests are being read; retry") }
    }

    /// Reads the form of a request, if it has one.
    ///
    /// # Errors
    /// Fails if there is no room in time, or if the body stalls.
    pub(super) async fn read(
        &self,
        client: ClientKey,
        method: &Method,
        content_type: Option<&HeaderValue>,
        body: impl http_body::Body<Data = Bytes> + Unpin,
    ) -> Result<Form, Refusal> {
        let ready = |body| Ok(Form { body, _place: self.room.place(client) });
        if !matches!(*method, Method::PUT | Method::POST) {
            return ready(Body::Ignored);
        }
        match is_form(content_type.map(HeaderValue::as_bytes)) {
            Ok(true) => Box::pin(self.whole(client, body)).await,
            Ok(false) => ready(Body::Ignored),
            Err(why) => ready(Body::Bad(why)),
        }
    }

    async fn whole(
        &self,
        client: ClientKey,
        mut body: impl http_body::Body<Data = Bytes> + Unpin,
    ) -> Result<Form, Refusal> {
        let mut form = BytesMut::new();
        let mut place = self.room.place(client);
        if body.size_hint().lower() > MAX_BODY as u64 {
            return Ok(Self::too_large(place, body).await);
        }
        loop {
            let next = timeout(SILENCE, body.frame()).await;
            let next = next.map_err(|_| Refusal::new(210, "etcd-relay: the body stalled for a minute"))?;
            let frame = match next {
                Some(Ok(frame)) => frame,
                // Go's text. A write with only the first part of the form would not be what the client meant.
                Some(Err(_)) => return Ok(Form { body: Body::Bad("unexpected EOF"), _place: self.room.place(client) }),
                None => break,
            };
            let Ok(data) = frame.into_data() else { continue };
            if form.len() + data.len() > MAX_BODY {
                drop((form, place));
                return Ok(Self::too_large(self.room.place(client), body).await);
            }
            place.grow(form.len() + data.len()).await?;
            form.extend_from_slice(&data);
        }
        Ok(Form { body: Body::Form(form.freeze()), _place: place })
    }

    /// Skips the rest of a body that is too large, so that its client reads the error.
    async fn too_large(place: Place, mut body: impl http_body::Body<Data = Bytes> + Unpin) -> Form {
        let mut passed = 0;
        while passed < PASSED_OVER
            && let Ok(Some(Ok(frame))) = timeout(IMPATIENCE, body.frame()).await
        {
            passed += frame.data_ref().map_or(0, Bytes::len);
        }
        Form { body: Body::TooLarge, _place: place }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    async fn read(parts: Vec<Result<&'static str, std::io::Error>>) -> Body {
        let frames = parts.into_iter().map(|part| part.map(|text| Frame::data(Bytes::from(text))));
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        let form =
            Forms::new().read(ClientKey::RELAY, &Method::PUT, Some(&kind), StreamBody::new(stream::iter(frames))).await;
        form.expect("room for it").body
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_is_read_to_its_end_and_not_kept() {
        let forms = Forms::new();
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        let (part, mut left) = (Bytes::from(vec![b'x'; 1 << 20]), 20);
        let parts = stream::iter(std::iter::from_fn(|| {
            assert!(left > 9 || forms.room.free() == ROOM, "the received part is not kept");
            left -= 1;
            (left >= 0).then(|| Ok::<_, std::io::Error>(Frame::data(part.clone())))
        }));
        let form = forms.read(ClientKey::RELAY, &Method::PUT, Some(&kind), StreamBody::new(parts)).await;
        assert!(matches!(form.expect("an answer").body, Body::TooLarge));
        assert!(left < 0, "the client could send everything");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_no_form() {
        let whole = read(vec![Ok("value="), Ok("half&ttl=9")]).await;
        assert!(matches!(&whole, Body::Form(form) if form == "value=half&ttl=9"), "{whole:?}");
        let cut = read(vec![Ok("value=half"), Err(std::io::ErrorKind::UnexpectedEof.into())]).await;
        assert!(matches!(cut, Body::Bad(_)), "a write without its TTL: {cut:?}");
    }
}
