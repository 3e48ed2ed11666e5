//! PURE codec of AMQP 0-9-1 with RabbitMQ's extensions: bytes <-> frames, methods, content headers, field tables.
//!
//! ```text
//! octet type | u16 channel | u32 size | payload (size) | 0xCE
//! type 1 method: u16 class, u16 method, arguments   2 content header: u16 class, u16 weight, u64 body size, properties
//! type 3 body: bytes                                8 heartbeat: empty
//! ```
//! In: bytes of a peer we do not trust: every length is checked before anything is kept, tables nest at most
//! [`table::MAX_DEPTH`] deep and hold at most [`table::MAX_ENTRIES`] entries, strings and bodies are slices of what was read.
//! Out: typed frames, or the exact [`Refusal`] the peer must be told.
//! Change here: what bytes mean. Not here: what a method does (`cloud::amqp`), which frame may follow which.

pub mod code;
pub mod content;
pub mod frame;
pub mod method;
pub mod table;
pub mod wire;

pub use code::{Code, Refusal};
pub use content::{ContentHeader, Properties};
pub use frame::{Decoder, Frame, FrameKind, PROTOCOL_HEADER};
pub use method::Method;
pub use table::{Table, Value};

#[cfg(test)]
mod tests;
