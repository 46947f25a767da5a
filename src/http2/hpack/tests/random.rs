//! Random blocks in every form that an encoder could write, and random bytes.

use std::collections::VecDeque;

use proptest::{collection::vec, prelude::*, sample::select};

use super::super::{
    Decoder, Field,
    field::Name,
    table::{FIXED, HEADERS},
};

/// A field, and the form to write it in.
#[derive(Clone, Debug)]
struct Written {
    name: Vec<u8>,
    value: Vec<u8>,
    form: Form,
    by_index: bool,
    /// Which of several matching entries to use.
    which: usize,
    huffman: (bool, bool),
}

#[derive(Clone, Copy, Debug)]
enum Form {
    Indexing,
    Plain,
    Never,
}

/// Changes of the table's size, followed by fields.
#[derive(Clone, Debug)]
pub(super) struct Part {
    sizes: Vec<usize>,
    fields: Vec<Written>,
}

/// Writes blocks in all forms, with its own table.
pub(super) struct Encoder {
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    limit: usize,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { table: VecDeque::new(), limit: 4096 }
    }

    pub(super) fn block(&mut self, part: &Part) -> Vec<u8> {
        let mut out = Vec::new();
        for size in &part.sizes {
            integer(&mut out, 0x20, 5, *size);
            self.limit = *size;
            self.evict();
        }
        for field in &part.fields {
            self.field(&mut out, field);
        }
        out
    }

    fn field(&mut self, out: &mut Vec<u8>, field: &Written) {
        let entries = FIXED.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let entries = entries.chain(self.table.iter().map(|(name, value)| (&name[..], &value[..])));
        let mut whole = Vec::new();
        let mut names = Vec::new();
        for (at, (name, value)) in entries.enumerate() {
            if name == field.name {
                names.push(at + 1);
                if value == field.value {
                    whole.push(at + 1);
                }
            }
        }
        let choose = |from: &[usize]| (!from.is_empty() && field.by_index).then(|| from[field.which % from.len()]);
        if let Some(index) = choose(&whole) {
            return integer(out, 0x80, 7, index);
        }
        let (form, bits) = match field.form {
            Form::Indexing => (0x40, 6),
            Form::Plain => (0, 4),
            Form::Never => (0x10, 4),
        };
        match choose(&names) {
            Some(index) => integer(out, form, bits, index),
            None => {
                out.push(form);
                string(out, &field.name, field.huffman.0);
            }
        }
        string(out, &field.value, field.huffman.1);
        if matches!(field.form, Form::Indexing) {
            self.table.push_front((field.name.clone(), field.value.clone()));
            self.evict();
        }
    }

    fn size(&self) -> usize {
        self.table.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
    }

    fn evict(&mut self) {
        while self.size() > self.limit {
            self.table.pop_back();
        }
    }
}

fn integer(out: &mut Vec<u8>, form: u8, bits: u32, mut value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        return out.push(form | value as u8);
    }
    out.push(form | most as u8);
    value -= most;
    while value > 127 {
        out.push((value % 128) as u8 + 128);
        value /= 128;
    }
    out.push(value as u8);
}

fn string(out: &mut Vec<u8>, string: &[u8], huffman: bool) {
    let mut encoded = Vec::new();
    if huffman {
        httlib_huffman::encode(string, &mut encoded).unwrap();
    } else {
        encoded.extend(string);
    }
    integer(out, if huffman { 0x80 } else { 0 }, 7, encoded.len());
    out.extend(encoded);
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => select(&FIXED[..HEADERS + 20]).prop_map(|(name, _)| name.into()),
        6 => select(&["grpc-timeout", "te", "grpc-accept-encoding", "Bad", "", ":unknown"][..]).prop_map(Into::into),
        1 => "[a-z-]{1,100}".prop_map(Into::into),
        1 => vec(any::<u8>(), 0..300),
    ]
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => select(&["", "POST", "GET", "/", "/a/b", "http", "localhost:2379", "trailers", "100m"][..]).prop_map(Into::into),
        3 => "[ -~]{0,60}".prop_map(Into::into),
        1 => vec(any::<u8>(), 0..300),
        1 => (any::<u8>(), 0..6000_usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

fn written() -> impl Strategy<Value = Written> {
    let form = prop_oneof![4 => Just(Form::Indexing), 1 => Just(Form::Plain), 1 => Just(Form::Never)];
    (names(), values(), form, prop::bool::weighted(0.8), any::<usize>(), any::<(bool, bool)>()).prop_map(
        |(name, value, form, by_index, which, huffman)| Written { name, value, form, by_index, which, huffman },
    )
}

/// The blocks of one connection.
pub(super) fn parts() -> impl Strategy<Value = Vec<Part>> {
    let sizes = prop_oneof![3 => Just(Vec::new()), 1 => vec(select(&[0, 34, 100, 300, 1000, 4095, 4096][..]), 1..3)];
    vec((sizes, vec(written(), 0..20)).prop_map(|(sizes, fields)| Part { sizes, fields }), 1..8)
}

proptest! {
    #[test]
    fn what_is_written_is_read(parts in parts()) {
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::new(4096);
        for part in &parts {
            let block = encoder.block(part);
            let mut found = Vec::new();
            prop_assert_eq!(decoder.decode(&block, |field, size| found.push((field, size))), Ok(()));
            let expected: Vec<(Field, usize)> = part.fields.iter().map(|field| {
                (Name::parse(&field.name).with(&field.value, false), field.name.len() + field.value.len() + 32)
            }).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(decoder.table().size(), encoder.size());
            prop_assert_eq!(decoder.table().entries().count(), encoder.table.len());
        }
    }

    /// The blocks also have bytes changed or cut off, so that much of a block is still well formed.
    #[test]
    fn no_bytes_panic_or_fill_more_than_the_table(
        parts in parts(),
        changes in vec((any::<usize>(), any::<u8>()), 0..4),
        keep in any::<usize>(),
        garbage in vec(any::<u8>(), 0..200),
    ) {
        let mut decoder = Decoder::new(4096);
        let mut encoder = Encoder::new();
        let mut blocks: Vec<_> = parts.iter().map(|part| encoder.block(part)).collect();
        if let Some(last) = blocks.last_mut() && !last.is_empty() {
            for (at, byte) in changes {
                let at = at % last.len();
                last[at] = byte;
            }
            last.truncate(keep % (last.len() + 1));
        }
        blocks.push(garbage);
        for block in blocks {
            let mut given = 0;
            let decoded = decoder.decode(&block, |_, size| {
                assert!(size >= 32);
                given += 1;
            });
            prop_assert!(given <= block.len());
            let sum: usize = decoder.table().entries().count() * 32;
            prop_assert!(sum <= decoder.table().size() && decoder.table().size() <= decoder.table().limit());
            prop_assert!(decoder.table().limit() <= 4096);
            if decoded.is_err() {
                break;
            }
        }
    }
}
