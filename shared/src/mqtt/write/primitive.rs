//! The primitive types of the wire and a block of properties.

use bytes::{BufMut, BytesMut};
use bytestring::ByteString;

use crate::mqtt::{packet::UserProperties, property::id};

/// Longest string or binary datum: its length has two bytes.
pub(super) const MAX_DATA: usize = 65_535;

/// A packet from its first byte and all that follows the remaining length.
pub(super) fn put_frame(first: u8, body: &[u8], out: &mut BytesMut) {
    out.reserve(5 + body.len());
    out.put_u8(first);
    put_integer(body.len(), out);
    out.put_slice(body);
}

/// A variable byte integer (1.5.5).
pub(super) fn put_integer(mut value: usize, out: &mut BytesMut) {
    while value >= 0x80 {
        out.put_u8(0x80 | (value & 0x7F) as u8);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Bytes that [`put_integer`] takes.
pub(super) const fn integer_length(value: usize) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Length and text; text over the limit is cut between two characters.
pub(super) fn put_text(text: &str, out: &mut BytesMut) {
    let end = text.floor_char_boundary(MAX_DATA);
    put_binary(text.as_bytes().get(..end).unwrap_or_default(), out);
}

/// Length and bytes. What comes from the wire always fits.
pub(super) fn put_binary(data: &[u8], out: &mut BytesMut) {
    let data = data.get(..MAX_DATA).unwrap_or(data);
    out.put_u16(data.len() as u16);
    out.put_slice(data);
}

/// A block of properties; allocates only when there is one.
#[derive(Debug, Default)]
pub(super) struct Properties(BytesMut);

impl Properties {
    pub(super) fn byte(&mut self, id: u8, value: u8) {
        self.0.put_slice(&[id, value]);
    }

    pub(super) fn two(&mut self, id: u8, value: u16) {
        self.0.put_u8(id);
        self.0.put_u16(value);
    }

    pub(super) fn four(&mut self, id: u8, value: u32) {
        self.0.put_u8(id);
        self.0.put_u32(value);
    }

    pub(super) fn integer(&mut self, id: u8, value: u32) {
        self.0.put_u8(id);
        put_integer(value as usize, &mut self.0);
    }

    pub(super) fn text(&mut self, id: u8, text: &str) {
        self.0.put_u8(id);
        put_text(text, &mut self.0);
    }

    pub(super) fn binary(&mut self, id: u8, data: &[u8]) {
        self.0.put_u8(id);
        put_binary(data, &mut self.0);
    }

    pub(super) fn user(&mut self, properties: &UserProperties) {
        for (name, value) in properties {
            self.pair(name, value);
        }
    }

    pub(super) fn pair(&mut self, name: &str, value: &str) {
        self.0.put_u8(id::USER_PROPERTY);
        put_text(name, &mut self.0);
        put_text(value, &mut self.0);
    }

    /// What most answers carry.
    pub(super) fn answer(&mut self, reason: Option<&ByteString>, user: &UserProperties) {
        if let Some(reason) = reason {
            self.text(id::REASON_STRING, reason);
        }
        self.user(user);
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn into_bytes(self) -> bytes::Bytes {
        self.0.freeze()
    }

    /// Length and properties.
    pub(super) fn put(&self, out: &mut BytesMut) {
        put_integer(self.0.len(), out);
        out.put_slice(&self.0);
    }
}
