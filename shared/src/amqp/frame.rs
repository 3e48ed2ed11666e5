//! Frames: cutting them out of a stream, and writing them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    code::{Code, Refusal},
    content::BASIC,
    method::Method,
};

/// What a client sends first.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";
/// Bytes around a payload: type, channel, size, end.
pub const OVERHEAD: usize = 8;
/// Last octet of a frame.
pub const END: u8 = 0xCE;
/// The smallest `frame_max` there may be; also the largest frame before tuning in the standard.
pub const FRAME_MIN: u32 = 4096;
/// Largest frame taken before a client has authenticated.
pub const PRE_AUTH_FRAME_MAX: u32 = 8192;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FrameKind {
    Method = 1,
    Header = 2,
    Body = 3,
    Heartbeat = 8,
}

/// One frame; the payload is a slice of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Kind.
    pub kind: FrameKind,
    /// Channel; 0 = the connection.
    pub channel: u16,
    /// What it holds.
    pub payload: Bytes,
}

/// Cuts frames out of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    /// Largest frame, all of it; 0 = no limit was agreed, the decoder still has one.
    pub frame_max: u32,
}

impl Decoder {
    /// The next whole frame. `None`: more bytes are needed, at the most [`Decoder::frame_max`] in all.
    pub fn next(&self, buffer: &mut BytesMut) -> Result<Option<Frame>, Refusal> {
        let [kind, c1, c0, s3, s2, s1, s0, ..] = buffer[..] else { return Ok(None) };
        let kind = match kind {
            1 => FrameKind::Method,
            2 => FrameKind::Header,
            3 => FrameKind::Body,
            8 => FrameKind::Heartbeat,
            other => {
                return Err(Refusal::new(Code::FrameError, format!("unknown frame type {other}")));
            }
        };
        let channel = u16::from_be_bytes([c1, c0]);
        let size = u32::from_be_bytes([s3, s2, s1, s0]);
        let largest = self.frame_max.saturating_sub(OVERHEAD as u32);
        if size > largest {
            let detail = format!(
                "type {}, all octets = <<>>: {{frame_too_large,{size},{largest}}}",
                kind as u8
            );
            return Err(Refusal::new(Code::FrameError, detail));
        }
        let size = size as usize;
        let Some(&end) = buffer.get(size + OVERHEAD - 1) else {
            buffer.reserve(size + OVERHEAD - buffer.len());
            return Ok(None);
        };
        if end != END {
            let detail = format!("type {}: {{invalid_frame_end_marker,{end}}}", kind as u8);
            return Err(Refusal::new(Code::FrameError, detail));
        }
        let mut bytes = buffer.split_to(size + OVERHEAD).freeze();
        bytes.advance(OVERHEAD - 1);
        bytes.truncate(size);
        Ok(Some(Frame { kind, channel, payload: bytes }))
    }
}

/// A frame around what `fill` writes.
fn frame(out: &mut Vec<u8>, kind: FrameKind, channel: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind as u8);
    out.put_u16(channel);
    let at = out.len();
    out.put_u32(0);
    fill(out);
    let size = (out.len() - at - 4) as u32;
    if let Some(slot) = out.get_mut(at..at + 4) {
        slot.copy_from_slice(&size.to_be_bytes());
    }
    out.push(END);
}

/// A method frame.
pub fn write_method(out: &mut Vec<u8>, channel: u16, method: &Method) {
    frame(out, FrameKind::Method, channel, |out| method.encode(out));
}

/// A `basic.deliver` frame without making the method first: the one that is written a million times.
pub fn write_deliver(
    out: &mut Vec<u8>,
    channel: u16,
    (consumer_tag, delivery_tag, redelivered): (&str, u64, bool),
    (exchange, routing_key): (&str, &str),
) {
    frame(out, FrameKind::Method, channel, |out| {
        out.put_u16(BASIC);
        out.put_u16(60);
        let mut writer = super::wire::Writer::new(out);
        writer.short(consumer_tag.as_bytes());
        writer.out().put_u64(delivery_tag);
        writer.out().push(u8::from(redelivered));
        writer.short(exchange.as_bytes());
        writer.short(routing_key.as_bytes());
    });
}

/// Content header and as many body frames as `frame_max` asks for; none for an empty body.
pub fn write_content(
    out: &mut Vec<u8>,
    channel: u16,
    properties: &[u8],
    body: &[u8],
    frame_max: u32,
) {
    frame(out, FrameKind::Header, channel, |out| {
        out.put_u16(BASIC);
        out.put_u16(0);
        out.put_u64(body.len() as u64);
        out.extend_from_slice(properties);
    });
    let largest = (frame_max as usize).max(FRAME_MIN as usize) - OVERHEAD;
    for chunk in body.chunks(largest) {
        frame(out, FrameKind::Body, channel, |out| out.extend_from_slice(chunk));
    }
}

/// A heartbeat.
pub fn write_heartbeat(out: &mut Vec<u8>) {
    frame(out, FrameKind::Heartbeat, 0, |_| {});
}
