//! Decodes the header blocks of a client (RFC 7541, sections 3, 5 and 6).
//!
//! Names and values are checked in `field`. The connection calls it with complete blocks. Always holds: no input makes
//! it panic, and it allocates no more than the decoded strings need.

use super::{
    field::{Field, Name},
    huffman,
    table::{Entry, Table},
};

/// The initial size of a client's table.
const DEFAULT_TABLE: usize = 4096;
/// Strings up to this decoded length are decoded on the stack.
const SHORT: usize = 256;
/// Most bytes after the first byte of an integer. Lengths and indices up to 2²⁸ fit, far more than a block needs.
const CONTINUATIONS: u32 = 4;

/// Why a block cannot be decoded. Later blocks cannot be understood either, so the connection ends with
/// COMPRESSION_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The block ends within a field.
    #[error("a header block ends within a field")]
    Truncated,
    /// An integer has too many bytes.
    #[error("a header block has an integer that is too long")]
    Integer,
    /// The index does not exist.
    #[error("a header block has an index that does not exist")]
    Index,
    /// A string is not valid Huffman code, or its padding is wrong.
    #[error("a header block has a string that is not valid Huffman code")]
    Huffman,
    /// The table would become larger than allowed.
    #[error("a header block makes the table larger than allowed")]
    TableSize,
    /// The table's size changes after a field.
    #[error("a header block changes the table's size after a field")]
    LateTableSize,
}

/// Decodes the blocks of one connection.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    max_table: usize,
}

impl Decoder {
    /// Creates a decoder with the table size that our settings announce. Less than the default of 4096 would be wrong
    /// for a client that has not read the settings yet.
    pub fn new(max_table: usize) -> Self {
        Self { table: Table::new(max_table.min(DEFAULT_TABLE)), max_table }
    }

    /// Decodes a complete block. Calls `each` for every field in order, with its size as RFC 9113 counts it for
    /// SETTINGS_MAX_HEADER_LIST_SIZE. After an error, nothing more may be decoded.
    pub fn decode(&mut self, block: &[u8], mut each: impl FnMut(Field, usize)) -> Result<(), Malformed> {
        let mut block = Block(block);
        while let Some(first) = block.peek()
            && first & 0xe0 == 0x20
        {
            let size = block.integer(5)?;
            if size > self.max_table {
                return Err(Malformed::TableSize);
            }
            self.table.set_limit(size);
        }
        let mut scratch = Scratch { short: [0; SHORT], long: Vec::new() };
        while let Some(first) = block.peek() {
            if first & 0x80 != 0 {
                let entry = self.table.get(block.integer(7)?).ok_or(Malformed::Index)?;
                each(entry.field.clone(), entry.size);
            } else if first & 0xc0 == 0x40 {
                let entry = self.literal(&mut block, 6, false, &mut scratch)?;
                each(entry.field.clone(), entry.size);
                self.table.insert(entry);
            } else if first & 0xe0 == 0x20 {
                return Err(Malformed::LateTableSize);
            } else {
                let entry = self.literal(&mut block, 4, first & 0x10 != 0, &mut scratch)?;
                each(entry.field, entry.size);
            }
        }
        Ok(())
    }

    /// Decodes a literal field. Its name is a string, or an index in this many bits.
    fn literal(
        &self,
        block: &mut Block<'_>,
        bits: u32,
        sensitive: bool,
        scratch: &mut Scratch,
    ) -> Result<Entry, Malformed> {
        let (name, name_length) = match block.integer(bits)? {
            0 => {
                let name = block.string(scratch)?;
                (Name::parse(name), name.len())
            }
            index => {
                let entry = self.table.get(index).ok_or(Malformed::Index)?;
                (entry.field.name(), entry.name)
            }
        };
        let value = block.string(scratch)?;
        Ok(Entry::new(name.with(value, sensitive), name_length, value.len()))
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

/// The buffer for decoded strings. It exists only while a block is decoded, since most connections are idle.
struct Scratch {
    short: [u8; SHORT],
    long: Vec<u8>,
}

/// The rest of a block.
struct Block<'a>(&'a [u8]);

impl<'a> Block<'a> {
    #[inline]
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (byte, rest) = self.0.split_first().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(*byte)
    }

    /// Decodes an integer that has this many bits in its first byte (RFC 7541, 5.1).
    #[inline]
    fn integer(&mut self, bits: u32) -> Result<usize, Malformed> {
        let most = (1_usize << bits) - 1;
        let value = usize::from(self.byte()?) & most;
        if value < most { Ok(value) } else { self.continued(value) }
    }

    fn continued(&mut self, mut value: usize) -> Result<usize, Malformed> {
        for at in 0..CONTINUATIONS {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Integer)
    }

    /// Decodes a string (RFC 7541, 5.2): a slice of the block, or of the scratch buffer.
    fn string<'s>(&mut self, scratch: &'s mut Scratch) -> Result<&'s [u8], Malformed>
    where
        'a: 's,
    {
        let huffman = self.peek().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let (string, rest) = self.0.split_at_checked(length).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        if !huffman {
            return Ok(string);
        }
        let longest = huffman::longest(length);
        let out = if longest <= SHORT {
            &mut scratch.short[..]
        } else {
            if scratch.long.len() < longest {
                scratch.long.resize(longest, 0);
            }
            &mut scratch.long[..]
        };
        let filled = huffman::decode(string, out).ok_or(Malformed::Huffman)?;
        Ok(&out[..filled])
    }
}
