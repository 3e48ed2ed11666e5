//! Lengths of a request checked against the bytes that are there, before anything is decoded.
//!
//! The codec crate allocates from length fields (a body of 4 bytes can ask it for 154 GB). [`check`] walks the request by
//! its [`schema`](super::schema): once it says yes, every string and array that the codec will make is there in full.
//! Not here: what the fields mean (`api`).

use super::schema::{Api, Field, Kind};

/// Elements of all arrays of a request together: the codec makes up to 200 bytes for an element of 2.
const ELEMENTS_MAX: usize = 500_000;

/// Why a request is not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRequest {
    #[error("request is cut short")]
    Truncated,
    #[error("length {0} is negative")]
    Negative(i64),
    #[error("varint is longer than 5 bytes")]
    Varint,
    #[error("more than {ELEMENTS_MAX} array elements")]
    TooManyElements,
    #[error("request does not decode")]
    Malformed,
}

/// Checks the body of a request; returns how many bytes it has (there may be more: they are not ours to judge).
pub(super) fn check(api: &Api, version: i16, body: &[u8]) -> Result<usize, BadRequest> {
    let mut walker =
        Walker { rest: body, version, flexible: api.is_flexible(version), elements: 0 };
    walker.row(api.fields)?;
    Ok(body.len() - walker.rest.len())
}

/// Skips the tagged fields at the head of `bytes`; returns what follows.
pub(super) fn skip_tags(bytes: &[u8]) -> Result<&[u8], BadRequest> {
    let mut walker = Walker { rest: bytes, version: 0, flexible: true, elements: 0 };
    walker.tags()?;
    Ok(walker.rest)
}

struct Walker<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements: usize,
}

impl Walker<'_> {
    fn row(&mut self, fields: &[Field]) -> Result<(), BadRequest> {
        for field in fields {
            if (field.from..=field.to).contains(&self.version) {
                self.field(field)?;
            }
        }
        if self.flexible { self.tags() } else { Ok(()) }
    }

    fn field(&mut self, field: &Field) -> Result<(), BadRequest> {
        match field.kind {
            Kind::Fixed(bytes) => self.skip(bytes),
            Kind::String => {
                let length = if self.flexible {
                    self.compact_length()?
                } else {
                    let bytes = self.take::<2>()?;
                    length(i64::from(i16::from_be_bytes(bytes)))?
                };
                self.skip(length)
            }
            Kind::Bytes => {
                let length = self.length()?;
                self.skip(length)
            }
            Kind::List(element) => {
                for _ in 0..self.count()? {
                    self.field(element)?;
                }
                Ok(())
            }
            Kind::Rows(fields) => {
                for _ in 0..self.count()? {
                    self.row(fields)?;
                }
                Ok(())
            }
        }
    }

    /// Number of elements that follow. An element has at least one byte, so a count above what is left is a lie.
    fn count(&mut self) -> Result<usize, BadRequest> {
        let count = self.length()?;
        if count > self.rest.len() {
            return Err(BadRequest::Truncated);
        }
        self.add_elements(count)?;
        Ok(count)
    }

    fn add_elements(&mut self, count: usize) -> Result<(), BadRequest> {
        self.elements = self.elements.saturating_add(count);
        if self.elements > ELEMENTS_MAX { Err(BadRequest::TooManyElements) } else { Ok(()) }
    }

    fn length(&mut self) -> Result<usize, BadRequest> {
        if self.flexible {
            self.compact_length()
        } else {
            length(i64::from(i32::from_be_bytes(self.take::<4>()?)))
        }
    }

    fn compact_length(&mut self) -> Result<usize, BadRequest> {
        Ok((self.varint()? as usize).saturating_sub(1))
    }

    fn tags(&mut self) -> Result<(), BadRequest> {
        let count = self.varint()? as usize;
        if count > self.rest.len() {
            return Err(BadRequest::Truncated);
        }
        self.add_elements(count)?;
        for _ in 0..count {
            self.varint()?;
            let size = self.varint()? as usize;
            self.skip(size)?;
        }
        Ok(())
    }

    fn varint(&mut self) -> Result<u32, BadRequest> {
        let mut value = 0_u64;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.take::<1>()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| BadRequest::Varint);
            }
        }
        Err(BadRequest::Varint)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], BadRequest> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(BadRequest::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), BadRequest> {
        self.rest = self.rest.get(bytes..).ok_or(BadRequest::Truncated)?;
        Ok(())
    }
}

/// A length field: -1 is null, less is a lie.
fn length(value: i64) -> Result<usize, BadRequest> {
    match value {
        -1 => Ok(0),
        0.. => Ok(value as usize),
        _ => Err(BadRequest::Negative(value)),
    }
}
