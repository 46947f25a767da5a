//! Decodes the header blocks of a client (RFC 7541, 3, 5 and 6).
//!
//! Not here: the names and values themselves (`field`). Called by the connection with whole blocks. Always holds: no bytes make this
//! panic, and what is taken from a block is no longer than its strings decoded.

use super::{
    field::{Field, Name},
    huffman,
    table::{Entry, Table},
};

/// The size that a client's table has before anything is agreed upon.
const DEFAULT_TABLE: usize = 4096;
/// Strings that are no longer than this when decoded are decoded on the stack.
const SHORT: usize = 256;
/// So many bytes may follow an integer's first: lengths and indices up to 2²⁸, far more than a block has.
const CONTINUATIONS: u32 = 4;

/// Why a block cannot be decoded. What the client means by later blocks is then unknown as well: the connection ends, with
/// COMPRESSION_ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The block ends within a field.
    #[error("a header block ends within a field")]
    Truncated,
    /// An integer takes more bytes than any that could be meant.
    #[error("a header block has an integer that is too long")]
    Integer,
    /// Nothing is at this index.
    #[error("a header block has an index that nothing is at")]
    Index,
    /// A string is not in Huffman's code, or not ended as it has to be.
    #[error("a header block has a string that is not in Huffman's code")]
    Huffman,
    /// The table is to become larger than it may be.
    #[error("a header block makes the table larger than it may be")]
    TableSize,
    /// The table's size is to change after a field.
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
    /// With the table's size as the settings announce it. Less than the default of 4096 would be wrong for a client that has not read
    /// the settings yet.
    pub fn new(max_table: usize) -> Self {
        Self { table: Table::new(max_table.min(DEFAULT_TABLE)), max_table }
    }

    /// Decodes a whole block and gives its fields in their order, with their sizes as RFC 9113 counts them for
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

    /// A field with its value, and its name or the index of one in so many bits.
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

/// Where a string is decoded to. It lives as long as a block's decoding, for many connections idle.
struct Scratch {
    short: [u8; SHORT],
    long: Vec<u8>,
}

/// What is left of a block.
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

    /// An integer whose first byte has this many bits for it (RFC 7541, 5.1).
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

    /// A string (RFC 7541, 5.2), from the block itself or decoded.
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
