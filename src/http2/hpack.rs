//! HPACK (RFC 7541) for the server's side of HTTP/2: blocks of requests are decoded, blocks of responses are encoded.
//!
//! Not here: frames, settings, and HTTP's rules for a whole request (pseudo-headers, their order, forbidden headers,
//! total size). The connection calls it once for each complete block, in the order of arrival. Always holds: a client's
//! strings are checked once, when they are decoded; an indexed field is a clone without a copy or a check. The table
//! keeps at most the announced number of bytes per client, and encoding keeps nothing.

mod decode;
mod encode;
mod field;
mod huffman;
mod table;
#[cfg(test)]
mod tests;

pub use decode::Decoder;
pub use encode::{encode_head, encode_table_size, encode_trailers};
pub use field::{Field, Invalid};
