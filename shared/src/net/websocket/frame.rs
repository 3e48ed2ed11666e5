//! WebSocket frames from a client (RFC 6455, 5), decoded in place and as they come: nothing is kept but a frame's header.
//!
//! In: raw bytes. Out: the same buffer with the payloads of binary frames at its front, and what is to be answered.
//! Change here: what a client may send. Not here: the HTTP request before (`upgrade`), sockets (`stream`).

/// Bytes of the longest header from a client: two, eight of length, four of mask.
const HEADER: usize = 14;
/// Bytes of a control frame's payload.
const CONTROL: usize = 125;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a peer did wrong, with the code it is told (RFC 6455, 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// 1002.
    #[error("WebSocket protocol error: {0}")]
    Protocol(&'static str),
    /// 1003, MQTT-6.0.0-1.
    #[error("a text frame where MQTT sends binary ones")]
    Text,
}

impl Fault {
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::Text => 1003,
        }
    }
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// To a ping, with its payload.
    Pong(Vec<u8>),
    /// To a close, or to a fault. Nothing is read or written after it.
    Close(u16),
}

/// Where the decoder stands.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    header: Vec<u8>,
    /// Payload that is still to come, of a frame whose header is complete.
    frame: Option<Frame>,
    /// A message was begun and not ended.
    in_message: bool,
    control: Vec<u8>,
    closed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: u8,
    left: u64,
    mask: [u8; 4],
    /// Place in the mask.
    at: usize,
}

impl Decoder {
    /// The peer has said close.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Decodes what was read. The payload bytes stand at the front of `bytes` then; returns how many. After a fault or a
    /// close nothing more is to be decoded.
    pub(super) fn decode(
        &mut self,
        bytes: &mut [u8],
        answers: &mut Vec<Answer>,
    ) -> Result<usize, Fault> {
        let (mut read, mut written) = (0, 0);
        while read < bytes.len() && !self.closed {
            let Some(frame) = &mut self.frame else {
                let Some(&byte) = bytes.get(read) else { break };
                read += 1;
                self.header.push(byte);
                self.frame = self.begin()?;
                if self.frame.is_some() {
                    self.header = Vec::new();
                    self.end_if_complete(answers)?;
                }
                continue;
            };
            let here = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len() - read);
            let Some(payload) = bytes.get_mut(read..read + here) else { break };
            unmask(payload, frame);
            if frame.opcode < CLOSE {
                bytes.copy_within(read..read + here, written);
                written += here;
            } else {
                self.control.extend_from_slice(payload);
            }
            read += here;
            self.end_if_complete(answers)?;
        }
        Ok(written)
    }

    /// The frame whose header is complete now.
    fn begin(&mut self) -> Result<Option<Frame>, Fault> {
        debug_assert!(self.header.len() <= HEADER);
        let [first, second, rest @ ..] = self.header.as_slice() else { return Ok(None) };
        let (last, opcode) = (first & 0x80 != 0, first & 0x0F);
        if first & 0x70 != 0 {
            return Err(Fault::Protocol("reserved bits are set"));
        }
        if second & 0x80 == 0 {
            return Err(Fault::Protocol("a client's frame without mask"));
        }
        let short = u64::from(second & 0x7F);
        let bytes = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let control = opcode >= CLOSE;
        match (opcode, self.in_message) {
            (TEXT, _) => return Err(Fault::Text),
            (CONTINUATION, false) => return Err(Fault::Protocol("continues nothing")),
            (BINARY, true) => return Err(Fault::Protocol("the message before is not complete")),
            (CONTINUATION | BINARY | CLOSE | PING | PONG, _) => {}
            _ => return Err(Fault::Protocol("unknown opcode")),
        }
        if control && (!last || short > CONTROL as u64) {
            return Err(Fault::Protocol("a control frame in parts, or longer than 125 bytes"));
        }
        let Some((length, mask)) = rest.split_at_checked(bytes) else { return Ok(None) };
        let Ok(mask) = <[u8; 4]>::try_from(mask) else { return Ok(None) };
        let left = length.iter().fold(0, |all: u64, byte| (all << 8) | u64::from(*byte));
        let left = match short {
            126 if left < 126 => return Err(Fault::Protocol("a longer length than needed")),
            127 if left < 0x1_0000 => return Err(Fault::Protocol("a longer length than needed")),
            127 if left >> 63 != 0 => return Err(Fault::Protocol("a length of more than 63 bits")),
            126 | 127 => left,
            short => short,
        };
        if !control {
            self.in_message = !last;
        }
        Ok(Some(Frame { opcode, left, mask, at: 0 }))
    }

    fn end_if_complete(&mut self, answers: &mut Vec<Answer>) -> Result<(), Fault> {
        let Some(frame) = self.frame.take_if(|frame| frame.left == 0) else { return Ok(()) };
        let control = std::mem::take(&mut self.control);
        match frame.opcode {
            PING => {
                // Only the last one needs an answer (5.5.3).
                answers.retain(|answer| !matches!(answer, Answer::Pong(_)));
                answers.push(Answer::Pong(control));
            }
            CLOSE => {
                if control.len() == 1 {
                    return Err(Fault::Protocol("half a close code"));
                }
                self.closed = true;
                answers.push(Answer::Close(1000));
            }
            _ => {}
        }
        Ok(())
    }
}

fn unmask(payload: &mut [u8], frame: &mut Frame) {
    let mut mask = frame.mask;
    mask.rotate_left(frame.at);
    let mut words = payload.chunks_exact_mut(4);
    for word in &mut words {
        word.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    words.into_remainder().iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    frame.at = (frame.at + payload.len()) % 4;
    frame.left -= payload.len() as u64;
}

/// A server's header for a frame of `length` bytes that is a whole binary message.
pub(super) fn binary(length: usize) -> ([u8; 10], usize) {
    header(BINARY, length)
}

/// A server's whole control frame.
pub(super) fn control(answer: &Answer) -> Vec<u8> {
    let (opcode, payload) = match answer {
        Answer::Pong(payload) => (PONG, payload.clone()),
        Answer::Close(code) => (CLOSE, code.to_be_bytes().to_vec()),
    };
    let (header, bytes) = header(opcode, payload.len());
    [header.get(..bytes).unwrap_or_default(), &*payload].concat()
}

fn header(opcode: u8, length: usize) -> ([u8; 10], usize) {
    let long = (length as u64).to_be_bytes();
    let [.., high, low] = long;
    let mut header = [0; 10];
    let bytes = match length {
        0..=125 => {
            header = [0x80 | opcode, low, 0, 0, 0, 0, 0, 0, 0, 0];
            2
        }
        126..=0xFFFF => {
            header = [0x80 | opcode, 126, high, low, 0, 0, 0, 0, 0, 0];
            4
        }
        _ => {
            let all = [0x80 | opcode, 127].into_iter().chain(long);
            header.iter_mut().zip(all).for_each(|(slot, byte)| *slot = byte);
            10
        }
    };
    (header, bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let (header, bytes) = header(first & 0x0F, payload.len());
        let mut out = header[..bytes].to_vec();
        out[0] = first;
        out[1] |= 0x80;
        out.extend(mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    /// Decodes in pieces of the given sizes.
    fn decode(bytes: &[u8], pieces: &[usize]) -> (Vec<u8>, Vec<Answer>, Option<Fault>) {
        let (mut decoder, mut out, mut answers) = (Decoder::default(), Vec::new(), Vec::new());
        let mut rest = bytes;
        let mut sizes = pieces.iter().copied().cycle();
        while !rest.is_empty() {
            let size = sizes.next().unwrap().clamp(1, rest.len());
            let mut piece = rest[..size].to_vec();
            rest = &rest[size..];
            match decoder.decode(&mut piece, &mut answers) {
                Ok(written) => out.extend_from_slice(&piece[..written]),
                Err(fault) => return (out, answers, Some(fault)),
            }
        }
        (out, answers, None)
    }

    /// RFC 6455, 5.7: "Hello" masked with 37 fa 21 3d, here as binary.
    #[test]
    fn the_standards_example_is_understood() {
        let bytes = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(decode(&bytes, &[usize::MAX]).0, b"Hello");
        assert_eq!(decode(&bytes, &[1]).0, b"Hello");
        assert_eq!(binary(256), ([0x82, 0x7E, 0x01, 0x00, 0, 0, 0, 0, 0, 0], 4));
        assert_eq!(binary(65_536).0, [0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(control(&Answer::Pong(b"Hello".to_vec())), b"\x8a\x05Hello");
        assert_eq!(control(&Answer::Close(1002)), [0x88, 2, 3, 0xEA]);
    }

    /// NanoMQ CVE-2026-25627 and its like: lengths and shapes that no client may send.
    // [MQTT-6.0.0-1]
    #[test]
    fn illegal_frames_are_refused_before_their_payload() {
        const MASK: [u8; 4] = [1, 2, 3, 4];
        let unmasked = vec![0x82, 1, 0];
        let huge = vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
        let wasteful_2 = vec![0x82, 0xFE, 0, 125, 1, 2, 3, 4];
        let wasteful_8 = vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 1, 2, 3, 4];
        let long_ping = vec![0x89, 0xFE, 0, 126, 1, 2, 3, 4];
        for (bytes, code) in [
            (frame(0x81, b"a", MASK), 1003),
            (frame(0x01, b"a", MASK), 1003),
            (frame(0xC2, b"a", MASK), 1002),
            (frame(0x80, b"a", MASK), 1002),
            (frame(0x83, b"a", MASK), 1002),
            (frame(0x8B, b"a", MASK), 1002),
            (frame(0x09, b"a", MASK), 1002),
            (frame(0x88, b"a", MASK), 1002),
            ([frame(0x02, b"a", MASK), frame(0x82, b"b", MASK)].concat(), 1002),
            (unmasked, 1002),
            (huge, 1002),
            (wasteful_2, 1002),
            (wasteful_8, 1002),
            (long_ping, 1002),
        ] {
            for pieces in [[1], [usize::MAX]] {
                let fault = decode(&bytes, &pieces).2;
                assert_eq!(fault.map(Fault::code), Some(code), "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_length_is_believed_but_nothing_is_reserved_for_it() {
        let mut decoder = Decoder::default();
        let mut bytes = [0x82, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 9];
        assert_eq!(decoder.decode(&mut bytes, &mut Vec::new()), Ok(1));
        assert_eq!(bytes[0], 9);
        assert_eq!(decoder.header.capacity() + decoder.control.capacity(), 0);
    }

    #[test]
    fn pings_are_answered_once_and_after_a_close_nothing_counts() {
        const MASK: [u8; 4] = [9, 8, 7, 6];
        let bytes = [
            frame(0x02, b"ab", MASK),
            frame(0x89, b"one", MASK),
            frame(0x89, b"two", MASK),
            frame(0x8A, b"unasked", MASK),
            frame(0x00, b"", MASK),
            frame(0x80, b"cd", MASK),
            frame(0x88, &1001_u16.to_be_bytes(), MASK),
            frame(0x82, b"late", MASK),
        ]
        .concat();
        let (out, answers, fault) = decode(&bytes, &[usize::MAX]);
        assert_eq!((out.as_slice(), fault), (&b"abcd"[..], None));
        assert_eq!(answers, [Answer::Pong(b"two".to_vec()), Answer::Close(1000)]);
    }

    proptest! {
        /// Whatever way messages are cut into frames and frames into reads, the same bytes come out.
        #[test]
        fn payloads_come_out_as_they_went_in(
            messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), 1..5_usize, any::<[u8; 4]>()), 0..8),
            pieces in prop::collection::vec(1..50_usize, 1..10),
            ping in any::<bool>(),
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (payload, parts, mask) in &messages {
                expected.extend_from_slice(payload);
                let size = payload.len().div_ceil(*parts).max(1);
                let mut chunks: Vec<&[u8]> = payload.chunks(size).collect();
                if chunks.is_empty() {
                    chunks.push(&[]);
                }
                let last = chunks.len() - 1;
                for (at, chunk) in chunks.iter().enumerate() {
                    let opcode = if at == 0 { BINARY } else { CONTINUATION };
                    let first = if at == last { 0x80 | opcode } else { opcode };
                    bytes.extend(frame(first, chunk, *mask));
                    if ping {
                        bytes.extend(frame(0x89, b"?", *mask));
                    }
                }
            }
            let (out, answers, fault) = decode(&bytes, &pieces);
            prop_assert_eq!(fault, None);
            prop_assert_eq!(out, expected);
            prop_assert_eq!(answers.len(), usize::from(ping && !messages.is_empty()));
        }

        /// Any bytes at all: no panic, nothing kept.
        #[test]
        fn any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..600), pieces in prop::collection::vec(1..50_usize, 1..10)
        ) {
            let (out, _, _) = decode(&bytes, &pieces);
            prop_assert!(out.len() <= bytes.len());
        }
    }
}
