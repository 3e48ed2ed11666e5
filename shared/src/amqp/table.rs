//! Field tables: in order, duplicates kept, nesting and size capped.
//!
//! Types as RabbitMQ reads them (errata of AMQP 0-9-1): `s` is a signed short integer, `l` and `L` are both signed 64 bit.

use bytes::{BufMut, Bytes};
use bytestring::ByteString;

use super::wire::{Field, Malformed, Reader};

/// Tables and arrays inside each other at the most.
pub const MAX_DEPTH: usize = 16;
/// Entries of a table at the most, nested ones included.
pub const MAX_ENTRIES: usize = 1024;

/// One value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Bool(bool),
    I8(i8),
    U8(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
    F64(f64),
    /// Scale and unscaled value.
    Decimal(u8, i32),
    /// Long string; usually text.
    Text(Bytes),
    /// Byte array `x`.
    Binary(Bytes),
    Array(Vec<Value>),
    /// Seconds since 1970.
    Timestamp(u64),
    Table(Table),
    Void,
}

impl Value {
    /// From text.
    pub fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Text(Bytes::copy_from_slice(text.as_ref()))
    }

    /// A whole number of any width.
    pub fn as_integer(&self) -> Option<i64> {
        Some(match *self {
            Self::I8(v) => v.into(),
            Self::U8(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I64(v) => v,
            _ => return None,
        })
    }

    /// Text, if it is UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// RabbitMQ's name of the type, as it stands in its reply texts.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "bool",
            Self::I8(_) => "byte",
            Self::U8(_) => "unsignedbyte",
            Self::I16(_) => "short",
            Self::U16(_) => "unsignedshort",
            Self::I32(_) => "signedint",
            Self::U32(_) => "unsignedint",
            Self::I64(_) => "long",
            Self::F32(_) => "float",
            Self::F64(_) => "double",
            Self::Decimal(..) => "decimal",
            Self::Text(_) => "longstr",
            Self::Binary(_) => "binary",
            Self::Array(_) => "array",
            Self::Timestamp(_) => "timestamp",
            Self::Table(_) => "table",
            Self::Void => "void",
        }
    }
}

/// Name-value pairs in the order they came.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table(pub Vec<(ByteString, Value)>);

impl Table {
    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Adds at the end.
    pub fn push(&mut self, name: impl Into<ByteString>, value: Value) {
        self.0.push((name.into(), value));
    }

    /// Adds at the end, in a chain.
    #[must_use]
    pub fn with(mut self, name: impl Into<ByteString>, value: Value) -> Self {
        self.push(name, value);
        self
    }

    /// Reads one, its length first.
    pub fn decode(reader: &mut Reader) -> Result<Self, Malformed> {
        let mut entries = MAX_ENTRIES;
        decode_table(reader, 1, &mut entries)
    }

    /// Writes it, its length first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        sized(out, |out| {
            for (name, value) in &self.0 {
                let name = name.as_bytes();
                let name = name.get(..255).unwrap_or(name);
                out.push(name.len() as u8);
                out.extend_from_slice(name);
                encode_value(value, out);
            }
        });
    }
}

/// Depth is at most [`MAX_DEPTH`], so the recursion is bounded.
fn decode_table(
    reader: &mut Reader,
    depth: usize,
    entries: &mut usize,
) -> Result<Table, Malformed> {
    if depth > MAX_DEPTH {
        return Err(Malformed::TableDepth);
    }
    let length = u32::read(reader)?;
    let mut inner = Reader::new(reader.take(length as usize)?);
    let mut table = Vec::new();
    while inner.remaining() > 0 {
        *entries = entries.checked_sub(1).ok_or(Malformed::TableEntries)?;
        let name = lossy(inner.short_bytes()?);
        table.push((name, decode_value(&mut inner, depth, entries)?));
    }
    Ok(Table(table))
}

fn decode_value(
    reader: &mut Reader,
    depth: usize,
    entries: &mut usize,
) -> Result<Value, Malformed> {
    Ok(match u8::read(reader)? {
        b't' => Value::Bool(u8::read(reader)? != 0),
        b'b' => Value::I8(i8::read(reader)?),
        b'B' => Value::U8(u8::read(reader)?),
        b's' => Value::I16(i16::read(reader)?),
        b'u' => Value::U16(u16::read(reader)?),
        b'I' => Value::I32(i32::read(reader)?),
        b'i' => Value::U32(u32::read(reader)?),
        b'l' | b'L' => Value::I64(i64::read(reader)?),
        b'f' => Value::F32(f32::read(reader)?),
        b'd' => Value::F64(f64::read(reader)?),
        b'D' => Value::Decimal(u8::read(reader)?, i32::read(reader)?),
        b'S' => Value::Text(Bytes::read(reader)?),
        b'x' => Value::Binary(Bytes::read(reader)?),
        b'T' => Value::Timestamp(u64::read(reader)?),
        b'V' => Value::Void,
        b'F' => Value::Table(decode_table(reader, depth + 1, entries)?),
        b'A' => {
            if depth >= MAX_DEPTH {
                return Err(Malformed::TableDepth);
            }
            let length = u32::read(reader)?;
            let mut inner = Reader::new(reader.take(length as usize)?);
            let mut array = Vec::new();
            while inner.remaining() > 0 {
                *entries = entries.checked_sub(1).ok_or(Malformed::TableEntries)?;
                array.push(decode_value(&mut inner, depth + 1, entries)?);
            }
            Value::Array(array)
        }
        other => return Err(Malformed::TableType(other)),
    })
}

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Bool(v) => out.extend_from_slice(&[b't', u8::from(*v)]),
        Value::I8(v) => out.extend_from_slice(&[b'b', v.to_be_bytes()[0]]),
        Value::U8(v) => out.extend_from_slice(&[b'B', *v]),
        Value::I16(v) => tagged(out, b's', &v.to_be_bytes()),
        Value::U16(v) => tagged(out, b'u', &v.to_be_bytes()),
        Value::I32(v) => tagged(out, b'I', &v.to_be_bytes()),
        Value::U32(v) => tagged(out, b'i', &v.to_be_bytes()),
        Value::I64(v) => tagged(out, b'l', &v.to_be_bytes()),
        Value::F32(v) => tagged(out, b'f', &v.to_be_bytes()),
        Value::F64(v) => tagged(out, b'd', &v.to_be_bytes()),
        Value::Decimal(scale, v) => {
            out.extend_from_slice(&[b'D', *scale]);
            out.extend_from_slice(&v.to_be_bytes());
        }
        Value::Text(v) => {
            out.push(b'S');
            sized(out, |out| out.extend_from_slice(v));
        }
        Value::Binary(v) => {
            out.push(b'x');
            sized(out, |out| out.extend_from_slice(v));
        }
        Value::Array(values) => {
            out.push(b'A');
            sized(out, |out| values.iter().for_each(|v| encode_value(v, out)));
        }
        Value::Timestamp(v) => tagged(out, b'T', &v.to_be_bytes()),
        Value::Table(table) => {
            out.push(b'F');
            table.encode(out);
        }
        Value::Void => out.push(b'V'),
    }
}

fn tagged(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(bytes);
}

/// What `fill` writes, with its length before it.
fn sized(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.put_u32(0);
    fill(out);
    let length = (out.len() - at - 4) as u32;
    if let Some(slot) = out.get_mut(at..at + 4) {
        slot.copy_from_slice(&length.to_be_bytes());
    }
}

/// Names in tables need not be UTF-8 for us; whoever must pass them on exactly keeps the raw bytes.
fn lossy(bytes: Bytes) -> ByteString {
    ByteString::try_from(bytes.clone())
        .unwrap_or_else(|_| ByteString::from(String::from_utf8_lossy(&bytes).into_owned()))
}
