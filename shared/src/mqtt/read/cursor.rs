//! The primitive types of the wire (MQTT 5, 1.5), taken from the front of one packet.

use bytes::{Buf, Bytes};
use bytestring::ByteString;

use super::Malformed;
use crate::mqtt::{check, packet::PacketId};

/// What is left of one packet. Everything taken out of it shares the read buffer.
#[derive(Debug)]
pub(crate) struct Cursor(Bytes);

const SHORT: Malformed = Malformed::packet("packet ends too early");

impl Cursor {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.0.try_get_u8().map_err(|_| SHORT)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.0.try_get_u16().map_err(|_| SHORT)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.0.try_get_u32().map_err(|_| SHORT)
    }

    /// A variable byte integer: at most four bytes, and no more than needed (MQTT-1.5.5-1).
    pub(crate) fn integer(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(Malformed::packet("integer is longer than needed (MQTT-1.5.5-1)"));
                }
                return Ok(value);
            }
        }
        Err(Malformed::packet("integer is longer than four bytes (MQTT 5, 1.5.5)"))
    }

    pub(crate) fn packet_id(&mut self) -> Result<PacketId, Malformed> {
        PacketId::new(self.u16()?)
            .ok_or(Malformed::protocol("packet identifier is 0 (MQTT-2.2.1-3)"))
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if length > self.0.len() {
            return Err(SHORT);
        }
        Ok(self.0.split_to(length))
    }

    /// Two bytes of length, and that many bytes.
    pub(crate) fn binary(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::from(self.u16()?);
        self.take(length)
    }

    /// A UTF-8 string: well formed, no surrogates, no NUL (MQTT-1.5.4-1, 1.5.4-2); a byte order mark stays (1.5.4-3).
    pub(crate) fn text(&mut self) -> Result<ByteString, Malformed> {
        let text = self.unchecked_text()?;
        if check::is_legal_string(&text) {
            Ok(text)
        } else {
            Err(Malformed::packet("string holds NUL (MQTT-1.5.4-2)"))
        }
    }

    /// Text whose NUL is looked for by the caller.
    fn unchecked_text(&mut self) -> Result<ByteString, Malformed> {
        ByteString::try_from(self.binary()?)
            .map_err(|_| Malformed::packet("string is not UTF-8 (MQTT-1.5.4-1)"))
    }

    /// A topic name; empty only if `alias_may_follow`.
    pub(crate) fn topic(&mut self, alias_may_follow: bool) -> Result<ByteString, Malformed> {
        let topic = self.unchecked_text()?;
        if (alias_may_follow && topic.is_empty()) || check::is_legal_topic_name(&topic) {
            Ok(topic)
        } else {
            Err(Malformed::packet(
                "topic name is empty or holds a wildcard or NUL (MQTT-3.3.2-2, 4.7.3)",
            ))
        }
    }

    /// All that is left.
    pub(crate) fn rest(self) -> Bytes {
        self.0
    }

    /// Refuses bytes after the packet's contents.
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::packet("packet is longer than its contents"))
        }
    }
}
