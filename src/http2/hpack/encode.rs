//! Encodes the header blocks of responses (RFC 7541, section 6).
//!
//! Nothing is put into the client's table or Huffman-coded, so blocks do not depend on each other and strings are
//! copied as they are. The connection calls it. Always holds: values that are marked sensitive are never indexed, not
//! even by proxies.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::table::{FIXED, HEADERS, STATUS};

/// Appends the block of a response's head. The headers must be valid in HTTP/2: no `connection` and the like.
pub fn encode_head(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap) {
    let value = status.as_str();
    match FIXED[STATUS - 1..HEADERS - 1].iter().position(|(_, fixed)| *fixed == value) {
        Some(at) => integer(out, 0x80, 7, STATUS + at),
        None => {
            integer(out, 0, 4, STATUS);
            string(out, value.as_bytes());
        }
    }
    encode_trailers(out, headers);
}

/// Appends the block of trailers.
pub fn encode_trailers(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        header(out, name, value);
    }
}

/// Appends a change of the table's size. It must precede the next block after the client made
/// SETTINGS_HEADER_TABLE_SIZE smaller. The table is never used, but clients insist.
pub fn encode_table_size(out: &mut Vec<u8>, size: usize) {
    integer(out, 0x20, 5, size);
}

fn header(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let form = if value.is_sensitive() { 0x10 } else { 0 };
    let name = name.as_str();
    match FIXED[HEADERS - 1..].iter().position(|(fixed, _)| *fixed == name) {
        Some(at) => integer(out, form, 4, HEADERS + at),
        None => {
            out.push(form);
            string(out, name.as_bytes());
        }
    }
    string(out, value.as_bytes());
}

/// Encodes an integer (RFC 7541, 5.1) in the last bits of a byte, and in further bytes if needed.
pub(super) fn integer(out: &mut Vec<u8>, form: u8, bits: u32, value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        out.push(form | value as u8);
        return;
    }
    out.push(form | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

pub(super) fn string(out: &mut Vec<u8>, string: &[u8]) {
    integer(out, 0, 7, string.len());
    out.extend_from_slice(string);
}
