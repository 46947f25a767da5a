//! Decodes HPACK's Huffman code (RFC 7541, 5.2 and appendix B).
//!
//! The table of codes comes from `httlib_huffman`. Its decoder is not used, because it accepts padding of zeros and
//! reads at most five bits at a time. Called by `decode`. Always holds: a string has at most one decoding; padding is
//! shorter than a byte and consists of ones.

use httlib_huffman::encoder::table::ENCODE_TABLE;

/// The symbol that ends a string. It must not occur in one.
const EOS: u16 = 256;
/// The longest code, which is that of [`EOS`].
const LONGEST: usize = 30;
/// Codes up to this many bits are decoded in one step. They cover the letters, digits and signs that are frequent in
/// headers.
const SHORT: usize = 8;

/// A decoded symbol.
#[derive(Clone, Copy)]
struct Code {
    symbol: u16,
    /// The length of the code in bits; 0 if it is not a short code.
    length: u8,
}

/// The short codes, indexed by the next bits of the input.
static SHORT_CODES: [Code; 1 << SHORT] = {
    let mut codes = [Code { symbol: 0, length: 0 }; 1 << SHORT];
    let mut symbol = 0;
    while symbol < ENCODE_TABLE.len() {
        let (length, code) = ENCODE_TABLE[symbol];
        if length as usize <= SHORT {
            let free = SHORT - length as usize;
            let mut tail = 0;
            while tail < 1 << free {
                codes[((code as usize) << free) + tail] = Code { symbol: symbol as u16, length };
                tail += 1;
            }
        }
        symbol += 1;
    }
    codes
};

/// The codes of one length. They are consecutive numbers, and the codes of the next length follow them.
#[derive(Clone, Copy)]
struct Length {
    /// The code after the last one, in the first bits of a word.
    end: u64,
    /// The first code.
    first: u32,
    /// The index of its symbol in [`SYMBOLS`].
    at: u16,
}

const TABLES: ([Length; LONGEST + 1], [u16; ENCODE_TABLE.len()]) = {
    let mut lengths = [Length { end: 0, first: 0, at: 0 }; LONGEST + 1];
    let mut symbols = [0; ENCODE_TABLE.len()];
    let mut at = 0;
    let mut length = 0;
    while length <= LONGEST {
        let start = at;
        let mut symbol = 0;
        while symbol < ENCODE_TABLE.len() {
            let (bits, code) = ENCODE_TABLE[symbol];
            if bits as usize == length {
                if at == start {
                    lengths[length] = Length { end: 0, first: code, at: at as u16 };
                }
                assert!(code == lengths[length].first + (at - start) as u32, "the code is canonical");
                lengths[length].end = (code as u64 + 1) << (32 - length);
                symbols[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    (lengths, symbols)
};
static LENGTHS: [Length; LONGEST + 1] = TABLES.0;
/// All symbols, in the order of their codes.
static SYMBOLS: [u16; ENCODE_TABLE.len()] = TABLES.1;

/// The greatest decoded length of a string of this length: no code is shorter than five bits.
pub(super) fn longest(length: usize) -> usize {
    length.saturating_mul(8) / 5
}

/// Decodes a whole string into `out`, whose length must be [`longest`]. Returns the decoded length, or `None` if the
/// string is not valid.
pub(super) fn decode(mut string: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut filled = 0;
    // The first `count` bits are still to be decoded; the rest are zeros.
    let (mut bits, mut count) = (0_u64, 0_u32);
    loop {
        if count <= 32 {
            if let Some((word, rest)) = string.split_first_chunk::<4>() {
                bits |= u64::from(u32::from_be_bytes(*word)) << (32 - count);
                count += 32;
                string = rest;
            } else {
                for &byte in string {
                    bits |= u64::from(byte) << (56 - count);
                    count += 8;
                }
                string = &[];
            }
        }
        // The input continued by endless padding.
        let padded = bits | u64::MAX.checked_shr(count).unwrap_or(0);
        let mut code = SHORT_CODES[(padded >> (64 - SHORT)) as usize];
        if code.length == 0 {
            code = long(padded >> 32)?;
        }
        let length = u32::from(code.length);
        if length > count {
            return (count < 8 && padded == u64::MAX).then_some(filled);
        }
        if code.symbol == EOS {
            return None;
        }
        *out.get_mut(filled)? = code.symbol as u8;
        filled += 1;
        bits <<= length;
        count -= length;
    }
}

/// The code at the beginning of a word, if it is not a short one.
#[cold]
fn long(word: u64) -> Option<Code> {
    let (length, found) = LENGTHS.iter().enumerate().skip(SHORT + 1).find(|(_, length)| word < length.end)?;
    let place = usize::from(found.at) + ((word >> (32 - length)) as usize).checked_sub(found.first as usize)?;
    Some(Code { symbol: *SYMBOLS.get(place)?, length: length as u8 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(string: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![0; longest(string.len())];
        let filled = decode(string, &mut out)?;
        out.truncate(filled);
        Some(out)
    }

    fn encoded(plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        httlib_huffman::encode(plain, &mut out).unwrap();
        out
    }

    #[test]
    fn every_symbol_alone_and_beside_every_other() {
        for one in 0..=255 {
            assert_eq!(decoded(&encoded(&[one])), Some(vec![one]));
            for two in 0..=255 {
                for three in [b'a', b'\\', one] {
                    assert_eq!(decoded(&encoded(&[one, two, three])), Some(vec![one, two, three]));
                }
            }
        }
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        assert_eq!(decoded(&encoded(&all)), Some(all));
        assert_eq!(decoded(b""), Some(Vec::new()));
    }

    #[test]
    fn the_shortest_codes_fill_what_is_allowed() {
        let zeros = vec![b'0'; 1600];
        assert_eq!(encoded(&zeros).len(), 1000);
        assert_eq!(longest(1000), 1600);
        assert_eq!(decoded(&encoded(&zeros)), Some(zeros));
    }

    #[test]
    fn padding_is_ones_and_shorter_than_a_byte() {
        // `a` is 00011.
        assert_eq!(decoded(&[0b0001_1111]), Some(b"a".to_vec()));
        for padding in 0..7 {
            assert_eq!(decoded(&[0b0001_1000 | padding]), None, "{padding:03b}");
        }
        assert_eq!(decoded(&[0b0001_1111, 0xff]), None);
        assert_eq!(decoded(&[0b0001_1111, 0xff, 0xff, 0xff]), None);
        // `&` is 11111000 and needs no padding. Then a whole byte of padding.
        assert_eq!(decoded(&[0xf8]), Some(b"&".to_vec()));
        assert_eq!(decoded(&[0xf8, 0xff]), None);
        assert_eq!(decoded(&[0xff]), None);
        // `:` is 1011100: one bit of padding.
        assert_eq!(decoded(&[0b1011_1001]), Some(b":".to_vec()));
        assert_eq!(decoded(&[0b1011_1000]), None);
    }

    #[test]
    fn a_code_that_is_cut_short_is_no_padding() {
        // `\` has 19 bits that begin with 15 ones.
        let mut cut = encoded(b"a\\");
        assert_eq!(decoded(&cut), Some(b"a\\".to_vec()));
        cut.pop();
        assert_eq!(decoded(&cut), None);
        assert_eq!(decoded(&[0xfe]), None);
    }

    #[test]
    fn the_end_of_string_is_in_no_string() {
        // 30 ones, followed by padding, or by `a` and padding.
        assert_eq!(decoded(&[0xff; 4]), None);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc, 0b0111_1111]), None);
        assert_eq!(decoded(&[0b0001_1111, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(decoded(&[0xff; 100]), None);
    }
}
