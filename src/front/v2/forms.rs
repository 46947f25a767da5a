//! [`Forms`]: the bodies of requests, read as far as they are forms.
//!
//! Not here: what is in a form (`fields`). Always holds: a body is at most [`MAX_BODY`] long in memory, and all that are being read, or
//! waited for, have a bound together: a client that sends half of one and waits holds up nobody for longer than [`SILENCE`].

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use http::{HeaderValue, Method};
use http_body_util::BodyExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    answer::Refusal,
    fields::{Body, MAX_BODY, is_form},
};
use crate::front::body::RequestBody;

/// The room for all bodies.
const ROOM: usize = 256 << 20;
/// What a body takes of it at a time. Shorter ones need none: their number is that of connections.
const BLOCK: usize = 64 << 10;
/// How long a body waits for room.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a body may not go on.
const SILENCE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub(super) struct Forms {
    room: Arc<Semaphore>,
}

/// A body, and its part of the room until it is dropped.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) body: Body,
    _room: Option<OwnedSemaphorePermit>,
}

impl Forms {
    pub(super) fn new() -> Self {
        Self { room: Arc::new(Semaphore::new(ROOM / BLOCK)) }
    }

    /// Reads the form of a request that has one.
    ///
    /// # Errors
    /// Where there is no room for it in time, or it does not go on.
    pub(super) async fn read(
        &self,
        method: &Method,
        content_type: Option<&HeaderValue>,
        body: RequestBody,
    ) -> Result<Form, Refusal> {
        let ready = |body| Ok(Form { body, _room: None });
        if !matches!(*method, Method::PUT | Method::POST) {
            return ready(Body::Ignored);
        }
        match is_form(content_type.map(HeaderValue::as_bytes)) {
            Ok(true) => self.whole(body).await,
            Ok(false) => ready(Body::Ignored),
            Err(why) => ready(Body::Bad(why)),
        }
    }

    async fn whole(&self, mut body: RequestBody) -> Result<Form, Refusal> {
        let mut form = BytesMut::new();
        let mut room: Option<OwnedSemaphorePermit> = None;
        loop {
            let next = timeout(SILENCE, body.frame()).await;
            let next = next.map_err(|_| Refusal::new(210, "etcd-relay: the body did not go on for a minute"))?;
            let Some(Ok(frame)) = next else { break };
            let Ok(data) = frame.into_data() else { continue };
            if form.len() + data.len() > MAX_BODY {
                return Ok(Form { body: Body::TooLarge, _room: None });
            }
            self.take(&mut room, form.len() + data.len()).await?;
            form.extend_from_slice(&data);
        }
        Ok(Form { body: Body::Form(form.freeze()), _room: room })
    }

    async fn take(&self, room: &mut Option<OwnedSemaphorePermit>, len: usize) -> Result<(), Refusal> {
        let had = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = (len / BLOCK).saturating_sub(had);
        if more == 0 {
            return Ok(());
        }
        let busy = || Refusal::unavailable("etcd-relay: too many large requests are on their way");
        let taken = timeout(PATIENCE, self.room.clone().acquire_many_owned(more as u32)).await;
        let taken = taken.map_err(|_| busy())?.map_err(|_| busy())?;
        match room {
            Some(room) => room.merge(taken),
            none => *none = Some(taken),
        }
        Ok(())
    }
}
