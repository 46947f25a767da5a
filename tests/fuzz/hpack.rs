//! Feeds blocks of compressed fields to the HPACK decoder, including the output of the encoder.
//!
//! The RFC's examples and other encoders are in the tests of `src/http2/hpack`.

use etcd_relay::http2::hpack::{Decoder, Field, encode_trailers};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{draw::Draw, engine::within};

/// Memory that a decoder may use in addition to its table and its output.
const OWN: usize = 64 << 10;

pub(crate) fn target(input: &[u8]) {
    let mut draw = Draw(input);
    if draw.flip() { blocks(draw) } else { round_trip(draw) }
}

/// Decodes any bytes as the blocks of one connection, which may end with an error.
fn blocks(mut draw: Draw<'_>) {
    let max_table = draw.of(&[4_096, 65_536, 0]);
    let most = OWN + 8 * max_table.max(4_096) + 16 * draw.0.len();
    within(most, || {
        let mut decoder = Decoder::new(max_table);
        while !draw.is_done() {
            let block = draw.some();
            let mut fields = 0;
            let decoded = decoder.decode(block, |field, size| {
                fields += 1;
                assert!(size >= 32, "a field counts 32 and its bytes");
                if let Field::Header(name, value) = field {
                    assert!(size <= 32 + name.as_str().len() + value.len(), "{name} counts {size}");
                }
            });
            // Each field takes at least one byte.
            assert!(fields <= block.len(), "{fields} fields of {} bytes", block.len());
            if decoded.is_err() {
                return;
            }
        }
    });
}

/// Encoded blocks decode to the same fields, and a truncated block is an error.
fn round_trip(mut draw: Draw<'_>) {
    let mut headers = HeaderMap::new();
    while !draw.is_done() && headers.len() < 100 {
        let name = match draw.of(&[0, 1, 2, 3]) {
            0 => HeaderName::from_static("grpc-status"),
            1 => HeaderName::from_static("content-type"),
            _ => match HeaderName::from_bytes(draw.some()) {
                Ok(name) => name,
                Err(_) => continue,
            },
        };
        let Ok(mut value) = HeaderValue::from_bytes(draw.some()) else { continue };
        value.set_sensitive(draw.flip());
        headers.append(name, value);
    }
    let mut block = Vec::new();
    encode_trailers(&mut block, &headers);
    let mut decoded = Vec::new();
    Decoder::new(4_096).decode(&block, |field, _| decoded.push(field)).expect("the encoder's own block");
    let wanted: Vec<_> = headers.iter().map(|(name, value)| Field::Header(name.clone(), value.clone())).collect();
    assert_eq!(decoded, wanted);
    let sensitive = |fields: &[Field]| -> Vec<bool> {
        fields.iter().map(|field| matches!(field, Field::Header(_, value) if value.is_sensitive())).collect()
    };
    assert_eq!(sensitive(&decoded), sensitive(&wanted));
    if let Some((_, cut)) = block.split_last() {
        let result = Decoder::new(4_096).decode(cut, |_, _| {});
        let text = result.map_err(|error| error.to_string());
        assert_eq!(text, Err("a header block ends within a field".to_owned()));
    }
}
