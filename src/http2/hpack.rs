//! HPACK (RFC 7541) for both sides of HTTP/2: a peer's blocks are decoded, blocks of answers are encoded without a
//! table, and those of requests with one.
//!
//! Not here: frames, settings, and HTTP's rules for a whole message (pseudo-headers, their order, forbidden headers,
//! total size). The connection calls it once for each complete block, in the order of arrival. Always holds: a peer's
//! strings are checked once, when they are decoded; an indexed field is a clone without a copy or a check. A table
//! keeps at most the announced number of bytes per peer, and encoding answers keeps nothing.

mod compress;
mod decode;
mod encode;
mod field;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

pub(super) use compress::Compressor;
pub use decode::Decoder;
pub use encode::{encode_head, encode_table_size, encode_trailers};
pub use field::{Field, Invalid};
