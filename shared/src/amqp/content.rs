//! Content headers: class, body size, and the fourteen properties of class `basic`.

use bytes::Bytes;

use super::{
    table::Table,
    wire::{Field, Malformed, Reader, Writer},
};

/// Class `basic`, the only one with content.
pub const BASIC: u16 = 60;

/// A content header; the properties as they came, so that they can be passed on exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentHeader {
    /// Class.
    pub class: u16,
    /// Bytes that follow in body frames.
    pub body_size: u64,
    /// Flags and property list.
    pub properties: Bytes,
}

impl ContentHeader {
    /// From a header frame's payload.
    pub fn decode(payload: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let class = u16::read(&mut reader)?;
        let _weight = u16::read(&mut reader)?;
        let body_size = u64::read(&mut reader)?;
        Ok(Self { class, body_size, properties: reader.rest() })
    }
}

/// No properties, encoded.
pub const NO_PROPERTIES: &[u8] = &[0, 0];

/// The properties, decoded. Strings need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs)]
pub struct Properties {
    pub content_type: Option<Bytes>,
    pub content_encoding: Option<Bytes>,
    pub headers: Option<Table>,
    /// 1 transient, 2 persistent.
    pub delivery_mode: Option<u8>,
    pub priority: Option<u8>,
    pub correlation_id: Option<Bytes>,
    pub reply_to: Option<Bytes>,
    /// Milliseconds, as text.
    pub expiration: Option<Bytes>,
    pub message_id: Option<Bytes>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    pub kind: Option<Bytes>,
    pub user_id: Option<Bytes>,
    pub app_id: Option<Bytes>,
    pub cluster_id: Option<Bytes>,
}

macro_rules! properties {
    ($($bit:literal $field:ident $kind:ident),* $(,)?) => {
        impl Properties {
            /// Reads flags and list; nothing may follow.
            pub fn decode(raw: Bytes) -> Result<Self, Malformed> {
                let mut reader = Reader::new(raw);
                let flags = u16::read(&mut reader)?;
                if flags & 1 != 0 {
                    return Err(Malformed::PropertyFlags);
                }
                let mut properties = Self::default();
                $( if flags & 1 << $bit != 0 { properties.$field = Some(read!($kind, reader)); } )*
                reader.finish()?;
                Ok(properties)
            }

            /// Writes flags and list.
            pub fn encode(&self, out: &mut Vec<u8>) {
                let mut flags = 0u16;
                $( if self.$field.is_some() { flags |= 1 << $bit; } )*
                let mut writer = Writer::new(out);
                flags.write(&mut writer);
                $( if let Some(value) = &self.$field { write!($kind, value, writer); } )*
            }
        }
    };
}

macro_rules! read {
    (short, $reader:ident) => {
        $reader.short_bytes()?
    };
    (field, $reader:ident) => {
        Field::read(&mut $reader)?
    };
}

macro_rules! write {
    (short, $value:ident, $writer:ident) => {
        $writer.short($value)
    };
    (field, $value:ident, $writer:ident) => {
        $value.write(&mut $writer)
    };
}

properties! {
    15 content_type short, 14 content_encoding short, 13 headers field, 12 delivery_mode field, 11 priority field,
    10 correlation_id short, 9 reply_to short, 8 expiration short, 7 message_id short, 6 timestamp field, 5 kind short,
    4 user_id short, 3 app_id short, 2 cluster_id short,
}
