//! HPACK (RFC 7541) for the server's side of HTTP/2: blocks of requests are decoded, blocks of responses are encoded.
//!
//! Not here: frames and settings, and what HTTP asks of a request as a whole (which pseudo-headers, how often, in what order, which
//! headers a connection may carry, how much of them). Called by the connection, once for each whole block, in the order in which the
//! blocks came. Always holds: a client's strings are checked once, when they are decoded; an indexed field is a clone without a copy
//! or a check. Of a client the table keeps at most the bytes that were announced, and encoding keeps nothing.

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
