//! PURE. Events of the virtual host -> frames, gathered so that many go out in one write.

use std::collections::HashMap;

use tributary_shared::amqp::{
    Code, Method, Refusal,
    frame::{write_content, write_deliver, write_method},
};

use super::channel::Channels;
use crate::queue::Event;

/// What is to be written next.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Frames.
    pub(super) bytes: Vec<u8>,
    /// Of them, this many are written.
    pub(super) written: usize,
    /// Credit of deliveries in `bytes` or written, not told to the virtual host yet.
    pub(super) delivered: i64,
    frame_max: u32,
    cancel_notify: bool,
    /// Last confirmed tag of each channel.
    confirmed: HashMap<u16, u64>,
}

impl Outgoing {
    pub(super) fn new(frame_max: u32, cancel_notify: bool) -> Self {
        Self { frame_max, cancel_notify, ..Self::default() }
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// This many more were written.
    pub(super) fn advance(&mut self, n: usize) {
        self.written += n;
        if self.written >= self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
            // One huge message must not keep its memory for the rest of the connection.
            self.bytes.shrink_to(1024 * 1024);
        }
    }

    /// Writes a method.
    pub(super) fn method(&mut self, channel: u16, method: &Method) {
        write_method(&mut self.bytes, channel, method);
    }

    /// Writes an event; a refusal that is for the whole connection comes back.
    pub(super) fn event(&mut self, event: Event, channels: &mut Channels) -> Option<Refusal> {
        match event {
            Event::Deliver { channel, consumer, tag, redelivered, message } => {
                self.delivered += message.size() as i64;
                if channels.is_open(channel) {
                    let consumer = (&*consumer, tag, redelivered);
                    let address = (&*message.exchange, &*message.routing_key);
                    write_deliver(&mut self.bytes, channel, consumer, address);
                    self.content(channel, &message.properties, &message.body);
                }
            }
            Event::Got {
                channel,
                tag: delivery_tag,
                redelivered,
                left: message_count,
                message,
            } => {
                let (exchange, routing_key) =
                    (message.exchange.clone(), message.routing_key.clone());
                let ok = Method::BasicGetOk {
                    delivery_tag,
                    redelivered,
                    exchange,
                    routing_key,
                    message_count,
                };
                if channels.is_open(channel) {
                    self.method(channel, &ok);
                    self.content(channel, &message.properties, &message.body);
                }
            }
            Event::Return { channel, message } => {
                let returned = Method::BasicReturn {
                    reply_code: Code::NoRoute as u16,
                    reply_text: Code::NoRoute.name().into(),
                    exchange: message.exchange.clone(),
                    routing_key: message.routing_key.clone(),
                };
                if channels.is_open(channel) {
                    self.method(channel, &returned);
                    self.content(channel, &message.properties, &message.body);
                }
            }
            Event::Confirm { channel, tag, multiple, ok } => {
                self.confirm(channel, tag, multiple, ok, channels);
            }
            Event::Method { channel, method } => self.answer(channel, &method, channels),
            Event::Refused { refusal, .. } if refusal.code.closes_connection() => {
                return Some(refusal);
            }
            Event::Refused { channel, refusal } => {
                if channels.close(channel) {
                    self.close_channel(channel, &refusal);
                }
            }
        }
        None
    }

    /// Writes `channel.close`.
    pub(super) fn close_channel(&mut self, channel: u16, refusal: &Refusal) {
        let close = Method::ChannelClose {
            reply_code: refusal.code as u16,
            reply_text: refusal.text().into(),
            class_id: refusal.culprit.0,
            method_id: refusal.culprit.1,
        };
        self.method(channel, &close);
    }

    fn content(&mut self, channel: u16, properties: &[u8], body: &[u8]) {
        write_content(&mut self.bytes, channel, properties, body, self.frame_max);
    }

    fn answer(&mut self, channel: u16, method: &Method, channels: &Channels) {
        match method {
            // The channel is forgotten already.
            Method::ChannelCloseOk {} => self.method(channel, method),
            Method::BasicCancel { .. } if !self.cancel_notify => {}
            Method::ChannelOpenOk { .. } => {
                self.confirmed.remove(&channel);
                self.method(channel, method);
            }
            _ if channels.is_open(channel) => self.method(channel, method),
            _ => {}
        }
    }

    /// `multiple` only where it says more than one.
    fn confirm(&mut self, channel: u16, tag: u64, multiple: bool, ok: bool, channels: &Channels) {
        if !channels.is_open(channel) {
            return;
        }
        let last = self.confirmed.entry(channel).or_default();
        let multiple = multiple && tag > *last + 1;
        *last = tag.max(*last);
        let method = if ok {
            Method::BasicAck { delivery_tag: tag, multiple }
        } else {
            Method::BasicNack { delivery_tag: tag, multiple, requeue: false }
        };
        self.method(channel, &method);
    }
}
