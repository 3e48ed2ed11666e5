//! The primitive types: octets, shorts, longs, short and long strings, packed bits.

use bytes::{Buf, BufMut, Bytes};
use bytestring::ByteString;

use super::{
    code::{Code, Refusal},
    table::Table,
};

/// Why arguments cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Malformed {
    #[error("arguments are cut short")]
    Truncated,
    #[error("{0} bytes follow the arguments")]
    Trailing(usize),
    #[error("a string is not UTF-8")]
    NotUtf8,
    #[error("field tables nest more than 16 deep")]
    TableDepth,
    #[error("a field table has more than 1024 entries")]
    TableEntries,
    #[error("field table type {0:#04x} is unknown")]
    TableType(u8),
    #[error("property flags are continued")]
    PropertyFlags,
    #[error("unknown class {0}")]
    UnknownClass(u16),
    #[error("unknown method {0}.{1}")]
    UnknownMethod(u16, u16),
}

impl Malformed {
    /// What the peer is told: 501 for bytes that do not add up, 502 for illegal values, 503 for unknown methods.
    pub fn refusal(self) -> Refusal {
        let code = match self {
            Self::Truncated | Self::Trailing(_) | Self::PropertyFlags => Code::FrameError,
            Self::NotUtf8 | Self::TableDepth | Self::TableEntries | Self::TableType(_) => {
                Code::SyntaxError
            }
            Self::UnknownClass(_) | Self::UnknownMethod(..) => Code::CommandInvalid,
        };
        Refusal::new(code, self.to_string())
    }
}

/// Reads arguments; strings are slices of the payload.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
    bits: Option<(u8, u8)>,
}

impl Reader {
    /// Over a payload.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, bits: None }
    }

    /// What is left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// What is left, unread.
    pub fn rest(self) -> Bytes {
        self.bytes
    }

    fn need(&mut self, n: usize) -> Result<(), Malformed> {
        self.bits = None;
        if self.bytes.len() < n { Err(Malformed::Truncated) } else { Ok(()) }
    }

    /// Exactly `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<Bytes, Malformed> {
        self.need(n)?;
        Ok(self.bytes.split_to(n))
    }

    /// Short string as bytes.
    pub fn short_bytes(&mut self) -> Result<Bytes, Malformed> {
        let n = u8::read(self)?;
        self.take(usize::from(n))
    }

    /// Nothing may be left.
    pub fn finish(&self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.bytes.len())) }
    }
}

/// Writes arguments at the end of a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    bit: u8,
}

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, bit: 0 }
    }

    /// The buffer, for anything but a bit.
    pub fn out(&mut self) -> &mut Vec<u8> {
        self.bit = 0;
        self.out
    }

    /// Short string: cut at 255 bytes, which callers check where it matters.
    pub fn short(&mut self, text: &[u8]) {
        let text = text.get(..255).unwrap_or(text);
        let out = self.out();
        out.push(text.len() as u8);
        out.extend_from_slice(text);
    }

    /// Long string.
    pub fn long(&mut self, text: &[u8]) {
        let out = self.out();
        out.put_u32(text.len() as u32);
        out.extend_from_slice(text);
    }
}

/// A type of argument.
pub trait Field: Sized {
    /// Reads one.
    fn read(reader: &mut Reader) -> Result<Self, Malformed>;
    /// Writes one.
    fn write(&self, writer: &mut Writer<'_>);
}

macro_rules! number {
    ($($ty:ty, $size:literal, $get:ident, $put:ident);*) => { $(
        impl Field for $ty {
            fn read(reader: &mut Reader) -> Result<Self, Malformed> {
                reader.need($size)?;
                Ok(reader.bytes.$get())
            }
            fn write(&self, writer: &mut Writer<'_>) {
                writer.out().$put(*self);
            }
        }
    )* };
}

number! {
    u8, 1, get_u8, put_u8; u16, 2, get_u16, put_u16; u32, 4, get_u32, put_u32; u64, 8, get_u64, put_u64;
    i8, 1, get_i8, put_i8; i16, 2, get_i16, put_i16; i32, 4, get_i32, put_i32; i64, 8, get_i64, put_i64;
    f32, 4, get_f32, put_f32; f64, 8, get_f64, put_f64
}

/// A bit; neighbours share an octet.
impl Field for bool {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let (octet, used) = match reader.bits {
            Some((octet, used)) if used < 8 => (octet, used),
            _ => (u8::read(reader)?, 0),
        };
        reader.bits = Some((octet, used + 1));
        Ok(octet >> used & 1 == 1)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        if writer.bit == 0 || writer.bit == 8 {
            writer.out.push(0);
            writer.bit = 0;
        }
        if let Some(last) = writer.out.last_mut() {
            *last |= u8::from(*self) << writer.bit;
        }
        writer.bit += 1;
    }
}

/// Short string.
impl Field for ByteString {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        ByteString::try_from(reader.short_bytes()?).map_err(|_| Malformed::NotUtf8)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.short(self.as_bytes());
    }
}

/// Long string.
impl Field for Bytes {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let n = u32::read(reader)?;
        reader.take(n as usize)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.long(self);
    }
}

impl Field for Table {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        Table::decode(reader)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        self.encode(writer.out());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_bits_share_octets_and_anything_else_ends_them() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        for i in 0..9 {
            (i % 2 == 0).write(&mut writer);
        }
        7u8.write(&mut writer);
        true.write(&mut writer);
        assert_eq!(out, [0b0101_0101, 1, 7, 1]);
        let mut reader = Reader::new(out.into());
        for i in 0..9 {
            assert_eq!(bool::read(&mut reader), Ok(i % 2 == 0));
        }
        assert_eq!(u8::read(&mut reader), Ok(7));
        assert_eq!(bool::read(&mut reader), Ok(true));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_string_longer_than_the_rest_is_refused() {
        assert_eq!(
            Bytes::read(&mut Reader::new(Bytes::from_static(&[255, 255, 255, 255, 1]))),
            Err(Malformed::Truncated)
        );
        assert_eq!(
            ByteString::read(&mut Reader::new(Bytes::from_static(&[2, b'a']))),
            Err(Malformed::Truncated)
        );
        assert_eq!(
            ByteString::read(&mut Reader::new(Bytes::from_static(&[1, 0xff]))),
            Err(Malformed::NotUtf8)
        );
    }
}
