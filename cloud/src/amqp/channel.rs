//! PURE. Frames of one connection's channels -> commands: which frame may follow which, and contents put together.
//!
//! In: frames of channels 1 and up. Out: [`Step`]s. At most one content is put together a channel, its size checked before
//! the first body frame; memory grows with what has come, never with what was announced.
//! Not here: what methods do (`queue`), channel 0 (`connection`).

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use tributary_shared::amqp::{
    Code, ContentHeader, Frame, FrameKind, Method, Properties, Refusal, content::BASIC,
};

use crate::queue::Publish;

/// What a frame led to.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing yet.
    Wait,
    /// For the virtual host.
    Method(Method),
    /// For the virtual host.
    Publish(Box<Publish>),
    /// To be written at once.
    Answer(Method),
    /// The channel is to be closed; the virtual host does not know yet.
    Close(Refusal),
}

/// The channels of a connection.
#[derive(Debug)]
pub(super) struct Channels {
    open: HashMap<u16, Channel>,
    channel_max: u16,
    max_message: u64,
}

#[derive(Debug)]
enum Channel {
    Open(Content),
    /// We sent `channel.close`: everything is ignored until it is answered.
    Closing,
}

/// A content on its way.
#[derive(Debug)]
enum Content {
    None,
    Header(Start),
    Body { start: Start, header: Box<(ContentHeader, Properties)>, body: Body },
}

/// What `basic.publish` said.
#[derive(Debug)]
struct Start {
    exchange: ByteString,
    routing_key: ByteString,
    mandatory: bool,
}

/// One frame's bytes are not copied; more are gathered.
#[derive(Debug)]
enum Body {
    Empty,
    One(Bytes),
    Many(BytesMut),
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn push(&mut self, bytes: Bytes) {
        *self = match std::mem::replace(self, Self::Empty) {
            Self::Empty => Self::One(bytes),
            Self::One(first) => {
                let mut many = BytesMut::from(&first[..]);
                many.extend_from_slice(&bytes);
                Self::Many(many)
            }
            Self::Many(mut many) => {
                many.extend_from_slice(&bytes);
                Self::Many(many)
            }
        };
    }

    fn finish(self) -> Bytes {
        match self {
            Self::Empty => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

impl Channels {
    pub(super) fn new(channel_max: u16, max_message: u64) -> Self {
        Self { open: HashMap::new(), channel_max, max_message }
    }

    /// Deliveries may be written.
    pub(super) fn is_open(&self, channel: u16) -> bool {
        matches!(self.open.get(&channel), Some(Channel::Open(_)))
    }

    /// We close it; `false`: it was not open.
    pub(super) fn close(&mut self, channel: u16) -> bool {
        let open = self.is_open(channel);
        if open {
            self.open.insert(channel, Channel::Closing);
        }
        open
    }

    /// Takes one frame of `channel`; an error closes the connection.
    pub(super) fn frame(&mut self, frame: Frame) -> Result<Step, Refusal> {
        let channel = frame.channel;
        match self.open.get_mut(&channel) {
            None => self.closed(frame),
            Some(Channel::Closing) => {
                if frame.kind != FrameKind::Method {
                    return Ok(Step::Wait);
                }
                match Method::decode(frame.payload) {
                    Ok(Method::ChannelCloseOk {}) => {
                        self.open.remove(&channel);
                        Ok(Step::Wait)
                    }
                    Ok(Method::ChannelClose { .. }) => Ok(Step::Answer(Method::ChannelCloseOk {})),
                    _ => Ok(Step::Wait),
                }
            }
            Some(Channel::Open(content)) => {
                let step = match frame.kind {
                    FrameKind::Method => method(content, frame.payload)?,
                    FrameKind::Header => header(content, frame.payload, self.max_message)?,
                    FrameKind::Body => body(content, frame.payload)?,
                    FrameKind::Heartbeat => {
                        return Err(Refusal::new(Code::UnexpectedFrame, "heartbeat on a channel"));
                    }
                };
                match &step {
                    Step::Method(Method::ChannelClose { .. }) => drop(self.open.remove(&channel)),
                    Step::Close(_) => drop(self.open.insert(channel, Channel::Closing)),
                    _ => {}
                }
                Ok(step)
            }
        }
    }

    /// Only `channel.open` may come.
    fn closed(&mut self, frame: Frame) -> Result<Step, Refusal> {
        let expected = || Refusal::new(Code::ChannelError, "expected 'channel.open'");
        if frame.kind == FrameKind::Heartbeat {
            return Err(Refusal::new(Code::UnexpectedFrame, "heartbeat on a channel"));
        }
        if frame.kind != FrameKind::Method {
            return Err(expected());
        }
        let method =
            Method::decode(frame.payload).map_err(|(why, culprit)| why.refusal().by(culprit))?;
        if !matches!(method, Method::ChannelOpen { .. }) {
            return Err(expected().by(method.id()));
        }
        if frame.channel > self.channel_max || self.open.len() >= usize::from(self.channel_max) {
            let max = self.channel_max;
            let detail =
                format!("number of channels opened has reached the negotiated channel_max ({max})");
            return Err(Refusal::new(Code::NotAllowed, detail).by((20, 10)));
        }
        self.open.insert(frame.channel, Channel::Open(Content::None));
        Ok(Step::Method(method))
    }
}

fn method(content: &mut Content, payload: Bytes) -> Result<Step, Refusal> {
    match content {
        Content::None => {}
        Content::Header(_) => {
            let detail =
                "expected content header for class 60, got non content header frame instead";
            return Err(Refusal::new(Code::UnexpectedFrame, detail).by((BASIC, 40)));
        }
        Content::Body { .. } => {
            let detail = "expected content body, got non content body frame instead";
            return Err(Refusal::new(Code::UnexpectedFrame, detail).by((BASIC, 40)));
        }
    }
    let method = Method::decode(payload).map_err(|(why, culprit)| why.refusal().by(culprit))?;
    let culprit = method.id();
    match method {
        Method::BasicPublish { immediate: true, .. } => {
            Err(Refusal::new(Code::NotImplemented, "immediate=true").by(culprit))
        }
        Method::BasicPublish { exchange, routing_key, mandatory, .. } => {
            *content = Content::Header(Start { exchange, routing_key, mandatory });
            Ok(Step::Wait)
        }
        Method::ChannelOpen { .. } => {
            Err(Refusal::new(Code::ChannelError, "second 'channel.open' seen").by(culprit))
        }
        Method::ChannelFlowOk { .. } => Ok(Step::Wait),
        _ if culprit.0 == 10 => {
            Err(Refusal::new(Code::ChannelError, "connection method on a channel").by(culprit))
        }
        method => Ok(Step::Method(method)),
    }
}

fn header(content: &mut Content, payload: Bytes, max_message: u64) -> Result<Step, Refusal> {
    let refuse = |why: &str| Refusal::new(Code::UnexpectedFrame, why).by((BASIC, 40));
    let start = match std::mem::replace(content, Content::None) {
        Content::Header(start) => start,
        Content::None => {
            let detail = "expected method frame, got non method frame instead";
            return Err(Refusal::new(Code::UnexpectedFrame, detail));
        }
        Content::Body { .. } => {
            return Err(refuse("expected content body, got non content body frame instead"));
        }
    };
    let undecodable = |why: tributary_shared::amqp::wire::Malformed| why.refusal().by((BASIC, 40));
    let header = ContentHeader::decode(payload).map_err(undecodable)?;
    if header.class != BASIC {
        return Err(refuse(&format!(
            "expected content header for class 60, got one for class {} instead",
            header.class
        )));
    }
    if header.body_size > max_message {
        let detail = format!(
            "message size {} is larger than configured max size {max_message}",
            header.body_size
        );
        return Ok(Step::Close(Refusal::new(Code::PreconditionFailed, detail).by((BASIC, 40))));
    }
    let properties = Properties::decode(header.properties.clone()).map_err(undecodable)?;
    *content = Content::Body { start, header: Box::new((header, properties)), body: Body::Empty };
    Ok(complete(content))
}

fn body(content: &mut Content, payload: Bytes) -> Result<Step, Refusal> {
    match content {
        Content::Body { header, body, .. } => {
            if (body.len() + payload.len()) as u64 > header.0.body_size {
                let detail = format!(
                    "content is longer than the {} bytes of its header",
                    header.0.body_size
                );
                return Err(Refusal::new(Code::FrameError, detail).by((BASIC, 40)));
            }
            body.push(payload);
            Ok(complete(content))
        }
        Content::Header(_) => {
            let detail =
                "expected content header for class 60, got non content header frame instead";
            Err(Refusal::new(Code::UnexpectedFrame, detail).by((BASIC, 40)))
        }
        Content::None => {
            let detail = "expected method frame, got non method frame instead";
            Err(Refusal::new(Code::UnexpectedFrame, detail))
        }
    }
}

/// The publish, once all of its body is there.
fn complete(content: &mut Content) -> Step {
    match std::mem::replace(content, Content::None) {
        Content::Body { start, header, body } if body.len() as u64 == header.0.body_size => {
            let Start { exchange, routing_key, mandatory } = start;
            let body = body.finish();
            let (header, properties) = *header;
            let raw = header.properties;
            Step::Publish(Box::new(Publish {
                exchange,
                routing_key,
                mandatory,
                properties,
                raw,
                body,
            }))
        }
        unfinished => {
            *content = unfinished;
            Step::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::amqp::{Decoder, frame};

    use super::*;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut buffer = BytesMut::from(bytes);
        let decoder = Decoder { frame_max: 131_072 };
        std::iter::from_fn(|| decoder.next(&mut buffer).unwrap()).collect()
    }

    fn of(method: Method) -> Vec<Frame> {
        let mut out = Vec::new();
        frame::write_method(&mut out, 1, &method);
        frames(&out)
    }

    fn publish() -> Method {
        Method::BasicPublish {
            ticket: 0,
            exchange: "".into(),
            routing_key: "q".into(),
            mandatory: false,
            immediate: false,
        }
    }

    fn content(body: &[u8]) -> Vec<Frame> {
        let mut out = Vec::new();
        frame::write_content(&mut out, 1, &[0, 0], body, 4096);
        frames(&out)
    }

    fn open() -> Channels {
        let mut channels = Channels::new(2, 10_000);
        feed(&mut channels, of(Method::ChannelOpen { out_of_band: "".into() })).unwrap();
        channels
    }

    fn feed(channels: &mut Channels, frames: Vec<Frame>) -> Result<Step, Refusal> {
        frames.into_iter().try_fold(Step::Wait, |_, frame| channels.frame(frame))
    }

    #[test]
    fn bodies_of_any_number_of_frames_are_put_together() {
        for size in [0, 1, 4088, 4089, 10_000] {
            let mut channels = open();
            let body = vec![7; size];
            feed(&mut channels, of(publish())).unwrap();
            let Step::Publish(publish) = feed(&mut channels, content(&body)).unwrap() else {
                panic!("{size}")
            };
            assert_eq!(publish.body, body);
        }
    }

    #[test]
    fn a_frame_out_of_order_closes_the_connection_with_its_code() {
        let flow = || of(Method::ChannelFlow { active: true });
        for (first, then, code) in [
            (vec![], content(b""), Code::UnexpectedFrame),
            (vec![], content(b"x")[1..].to_vec(), Code::UnexpectedFrame),
            (of(publish()), flow(), Code::UnexpectedFrame),
            (of(publish()), content(b"x")[1..].to_vec(), Code::UnexpectedFrame),
            ([of(publish()), content(b"xy")[..1].to_vec()].concat(), flow(), Code::UnexpectedFrame),
            (
                [of(publish()), content(b"x")[..1].to_vec()].concat(),
                content(b"xy")[1..].to_vec(),
                Code::FrameError,
            ),
            (vec![], of(Method::ChannelOpen { out_of_band: "".into() }), Code::ChannelError),
            (vec![], of(Method::ConnectionCloseOk {}), Code::ChannelError),
        ] {
            let mut channels = open();
            assert!(feed(&mut channels, first).is_ok());
            assert_eq!(feed(&mut channels, then).unwrap_err().code, code);
        }
        let refusal = feed(&mut Channels::new(2, 10), of(publish())).unwrap_err();
        assert_eq!(refusal.text(), "CHANNEL_ERROR - expected 'channel.open'");
    }

    #[test]
    fn a_message_that_is_too_large_closes_the_channel_before_its_body_comes() {
        let mut channels = open();
        feed(&mut channels, of(publish())).unwrap();
        let mut frames = content(&[0; 10_001]);
        let rest = frames.split_off(1);
        let Step::Close(refusal) = feed(&mut channels, frames).unwrap() else { panic!() };
        assert_eq!(refusal.code, Code::PreconditionFailed);
        assert_eq!(feed(&mut channels, rest), Ok(Step::Wait), "the body is ignored");
        assert_eq!(feed(&mut channels, of(publish())), Ok(Step::Wait));
        feed(&mut channels, of(Method::ChannelCloseOk {})).unwrap();
        feed(&mut channels, of(Method::ChannelOpen { out_of_band: "".into() })).unwrap();
        assert!(channels.is_open(1));
    }

    #[test]
    fn immediate_is_not_implemented() {
        let mut channels = open();
        let Method::BasicPublish { exchange, routing_key, .. } = publish() else { unreachable!() };
        let immediate = Method::BasicPublish {
            ticket: 0,
            exchange,
            routing_key,
            mandatory: false,
            immediate: true,
        };
        let refusal = feed(&mut channels, of(immediate)).unwrap_err();
        assert_eq!((refusal.code, refusal.culprit), (Code::NotImplemented, (60, 40)));
    }
}
