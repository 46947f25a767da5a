//! Reads headers from an HTTP/2 block that was written without a dynamic table.
//!
//! This is not all of HPACK. Of the static table only `:status` is needed, because gRPC's own headers are not in it.
//! Called by `wire` at the end of a stream. Always holds: bytes that are not a block of headers give `None`.

use httlib_huffman::DecoderSpeed;

/// The index of the first `:status` in the static table, and the status codes of its entries.
const STATUS: usize = 8;
const STATUSES: [&str; 7] = ["200", "204", "206", "304", "400", "404", "500"];
/// The size of the static table.
const STATIC: usize = 61;

/// Names and values of the headers whose names are supported here.
pub(super) fn read(mut block: &[u8]) -> Option<Vec<(String, String)>> {
    let mut headers = Vec::new();
    while let Some(first) = block.first() {
        if first & 0x80 != 0 {
            let index = integer(&mut block, 7)?;
            if let Some(status) = index.checked_sub(STATUS).and_then(|status| STATUSES.get(status)) {
                headers.push((":status".to_owned(), (*status).to_owned()));
            }
            if index == 0 || index > STATIC {
                return None;
            }
        } else if first & 0xe0 == 0x20 {
            // A new size of the dynamic table, which stays empty.
            integer(&mut block, 5)?;
        } else {
            let index = integer(&mut block, if first & 0x40 != 0 { 6 } else { 4 })?;
            let name = match index {
                0 => string(&mut block)?,
                _ if (STATUS..STATUS + STATUSES.len()).contains(&index) => ":status".to_owned(),
                _ => String::new(),
            };
            headers.push((name, string(&mut block)?));
        }
    }
    Some(headers)
}

/// An integer with this many bits in its first byte.
fn integer(block: &mut &[u8], bits: u32) -> Option<usize> {
    let (first, rest) = block.split_first()?;
    *block = rest;
    let all = (1_usize << bits) - 1;
    let mut value = usize::from(*first) & all;
    if value < all {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = block.split_first()?;
        *block = rest;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn string(block: &mut &[u8]) -> Option<String> {
    let huffman = block.first()? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length)?;
    *block = rest;
    if !huffman {
        return Some(String::from_utf8_lossy(bytes).into_owned());
    }
    let mut plain = Vec::new();
    httlib_huffman::decode(bytes, &mut plain, DecoderSpeed::OneBit).ok()?;
    Some(String::from_utf8_lossy(&plain).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(headers: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn forms_of_a_header() {
        assert_eq!(read(&[0x88]), owned(&[(":status", "200")]));
        assert_eq!(read(&[0x20, 0x8d]), owned(&[(":status", "404")]));
        assert_eq!(read(b"\x08\x03503"), owned(&[(":status", "503")]));
        assert_eq!(read(b"\x00\x01a\x02bc\x40\x01d\x00"), owned(&[("a", "bc"), ("d", "")]));
        // Huffman-coded examples of RFC 7541, C.4.1 and C.6.1.
        assert_eq!(
            read(b"\x00\x01a\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"),
            owned(&[("a", "www.example.com")])
        );
        let long = [b"\x00\x01a\x7f\x05".to_vec(), vec![b'x'; 132]].concat();
        assert_eq!(read(&long).map(|headers| headers[0].1.len()), Some(132));
    }

    #[test]
    fn what_is_cut_short_gives_nothing() {
        for block in [&b"\x00"[..], b"\x00\x05a", b"\x00\x01a", b"\xff", b"\x80", b"\x00\x01a\x7f\xff\xff\xff\xff\xff"]
        {
            assert_eq!(read(block), None, "{block:?}");
        }
    }
}
