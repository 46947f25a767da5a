//! Sends bytes as requests of the JSON gateway over a connection of a whole relay.
//!
//! Checks that nothing panics, that each request is answered, and that each answer is JSON. A request that another
//! parser rejects must be refused, and a successful answer must be JSON for that parser too. The meaning of requests is
//! compared with etcd in `tests/it`.

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::{draw::Draw, relay};

/// The other parser's limit on nesting.
const DEPTH: usize = 100;

/// The calls whose paths begin with `/v3/kv/`, and parts of meaningful requests.
const CALLS: [&str; 4] = ["range", "put", "deleterange", "txn"];
const PIECES: [&str; 24] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"key\":",
    "\"range_end\":",
    "\"value\":",
    "\"Zm9v\"",
    "\"AA==\"",
    "null",
    "true",
    "1",
    "\"-7\"",
    "1.5e3",
    "\"success\":[",
    "{\"request_range\":{",
    "{\"requestPut\":{\"key\":\"YQ==\"}}",
    "\"compare\":[{\"key\":\"YQ==\"}]",
    "\"sort_target\":",
    "\"MOD\"",
    "\"\\u00e9\\ud83d\"",
    " ",
];

pub(crate) fn target(input: &[u8]) {
    let mut draw = Draw(input);
    let path = format!("/v3/kv/{}", draw.of(&CALLS));
    let body = if draw.flip() {
        draw.0.to_vec()
    } else {
        let mut text = String::new();
        while !draw.is_done() {
            text.push_str(draw.of(&PIECES));
        }
        text.into_bytes()
    };
    relay::with(None, |relay| async move {
        let (status, answer) = relay.post(&path, Bytes::from(body.clone())).await;
        let text = String::from_utf8_lossy(&body);
        let shown: serde_json::Value = serde_json::from_slice(&answer).expect("an answer is JSON");
        assert_eq!(shown["error"].is_string(), status != 200, "{shown} for {text}");
        let deep = body.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() > DEPTH;
        if deep || !matches!(body.trim_ascii_start().first(), Some(b'{' | b'[')) {
            return;
        }
        let read = serde_json::Deserializer::from_slice(&body).into_iter::<IgnoredAny>().next();
        if !matches!(read, Some(Ok(_))) {
            assert_eq!((status, &shown["code"]), (400, &3.into()), "{shown} for {text}");
        }
    });
}
