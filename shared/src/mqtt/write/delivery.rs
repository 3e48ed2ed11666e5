//! The shared encoding of an application message.

use std::sync::OnceLock;

use bytes::Bytes;

/// Made by the codec on first use and shared by every receiver of a message; `Encoded::default()` when a message is made.
/// Says nothing about the message: all are equal.
#[derive(Debug, Clone, Default)]
pub struct Encoded(#[expect(dead_code, reason = "filled by the writer")] OnceLock<Bytes>);

impl PartialEq for Encoded {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Encoded {}
