//! Bytes to packets.

use bytes::BytesMut;

use super::packet::{Packet, Reason, Version};

/// Why bytes are not a legal packet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} (reason code {:#04x})", reason.0)]
pub struct Malformed {
    /// What to tell the peer in CONNACK or DISCONNECT.
    pub reason: Reason,
    /// For the log, with the section of the standard.
    pub detail: &'static str,
}

/// Incremental reader of one connection. Starts in "expects CONNECT" and takes the version from it; nothing is
/// allocated from a length before it has been checked against `maximum`.
#[derive(Debug)]
pub struct Reader {
    version: Option<Version>,
    maximum: usize,
}

impl Reader {
    /// For a server: the first packet must be CONNECT. `maximum`: bytes of one whole packet.
    pub fn server(maximum: usize) -> Self {
        Self { version: None, maximum }
    }

    /// For a client of the given version (tests, tools).
    pub fn client(version: Version, maximum: usize) -> Self {
        Self { version: Some(version), maximum }
    }

    /// Raises or lowers the packet limit (a larger one after login).
    pub fn set_maximum(&mut self, maximum: usize) {
        self.maximum = maximum;
    }

    /// Version once known.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// The next whole packet in `buffer`, which it is taken from; `None`: more bytes are needed.
    pub fn read(&mut self, buffer: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
        let _ = (buffer, self.maximum);
        unimplemented!()
    }
}
