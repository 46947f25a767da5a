//! Encodes the header blocks of responses (RFC 7541, 6).
//!
//! Nothing goes into the client's table and nothing is in Huffman's code: a block depends on no other, and its strings are copied as they
//! are. Called by the connection. Always holds: values that are marked sensitive are never indexed, by proxies neither.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::table::{FIXED, HEADERS, STATUS};

/// Appends the block of a response's head. The headers have to be such as HTTP/2 has: no `connection` and the like.
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

/// Appends a change of the table's size, to be sent before the next block when the client has made SETTINGS_HEADER_TABLE_SIZE smaller.
/// The table is not used either way, but clients insist.
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

/// An integer (RFC 7541, 5.1) in the last bits of a byte and more if need be.
fn integer(out: &mut Vec<u8>, form: u8, bits: u32, value: usize) {
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

fn string(out: &mut Vec<u8>, string: &[u8]) {
    integer(out, 0, 7, string.len());
    out.extend_from_slice(string);
}
