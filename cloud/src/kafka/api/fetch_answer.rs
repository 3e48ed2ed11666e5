//! The bytes of a Fetch answer: small fields copied, stored batches handed on as they are.
//!
//! The codec crate would copy every batch; here a large one stays the buffer that the log gave.

use bytes::{BufMut, Bytes, BytesMut};

use super::fetch::{BY_ID_FROM, Part, Topic};
use crate::kafka::{frame::Request, place::Endpoint};

/// FETCH_SESSION_ID_NOT_FOUND: we never give a session.
const NO_SESSION: i16 = 70;

/// First version that tells where the leaders are that it names; those it names since it has tagged fields.
const ENDPOINTS_FROM: i16 = 16;

/// Batches below this size are cheaper to copy than to hand on.
const COPY_BELOW: usize = 8 * 1024;

#[derive(Default)]
struct Writer {
    version: i16,
    flexible: bool,
    done: Vec<Bytes>,
    now: BytesMut,
}

/// The whole answer, in pieces. `nodes`: where the leaders are that parts name.
pub(super) fn encode(request: &Request, topics: &[Topic], nodes: &[Endpoint]) -> Vec<Bytes> {
    let mut writer = Writer::new(request, 0);
    writer.count(topics.len());
    for topic in topics {
        if request.version >= BY_ID_FROM {
            writer.now.put_slice(topic.id.as_bytes());
        } else {
            writer.string(&topic.name);
        }
        writer.count(topic.partitions.len());
        for part in &topic.partitions {
            writer.part(part);
        }
        writer.tags();
    }
    writer.finish(nodes)
}

/// The answer to a client that believes to have a session.
pub(super) fn no_session(request: &Request) -> Vec<Bytes> {
    let mut writer = Writer::new(request, NO_SESSION);
    writer.count(0);
    writer.finish(&[])
}

impl Writer {
    fn new(request: &Request, error: i16) -> Self {
        let now = request.response_head(4 * 1024);
        let (version, flexible) = (request.version, request.is_flexible());
        let mut writer = Self { version, flexible, done: Vec::new(), now };
        writer.now.put_i32(0);
        if version >= 7 {
            writer.now.put_i16(error);
            writer.now.put_i32(0);
        }
        writer
    }

    fn part(&mut self, part: &Part) {
        self.now.put_i32(part.index);
        self.now.put_i16(part.error.number());
        self.now.put_i64(part.high);
        // Last stable offset: there are no open transactions.
        self.now.put_i64(part.high);
        if self.version >= 5 {
            self.now.put_i64(part.start);
        }
        // Aborted transactions: null.
        self.null_array();
        if self.version >= 11 {
            self.now.put_i32(-1);
        }
        self.length(part.bytes);
        for batch in &part.batches {
            let bytes = batch.bytes();
            if bytes.len() < COPY_BELOW {
                self.now.put_slice(bytes);
            } else {
                self.done.push(self.now.split().freeze());
                self.done.push(bytes.clone());
            }
        }
        match part.leader {
            Some((id, epoch)) if self.flexible => {
                let mut leader = BytesMut::with_capacity(9);
                leader.put_i32(id);
                leader.put_i32(epoch);
                leader.put_u8(0);
                self.one_tag(1, &leader);
            }
            _ => self.tags(),
        }
    }

    fn nodes(&mut self, nodes: &[Endpoint]) {
        if self.version < ENDPOINTS_FROM || nodes.is_empty() {
            return self.tags();
        }
        let mut inner = Self { version: self.version, flexible: true, ..Self::default() };
        inner.count(nodes.len());
        for node in nodes {
            inner.now.put_i32(node.id);
            inner.string(&node.host);
            inner.now.put_i32(node.port);
            // No rack.
            inner.varint(0);
            inner.tags();
        }
        self.one_tag(0, &inner.now);
    }

    fn length(&mut self, length: usize) {
        if self.flexible {
            self.varint(length as u32 + 1);
        } else {
            self.now.put_i32(length as i32);
        }
    }

    fn count(&mut self, count: usize) {
        self.length(count);
    }

    fn null_array(&mut self) {
        if self.flexible {
            self.varint(0);
        } else {
            self.now.put_i32(-1);
        }
    }

    fn string(&mut self, text: &str) {
        if self.flexible {
            self.varint(text.len() as u32 + 1);
        } else {
            self.now.put_i16(text.len() as i16);
        }
        self.now.put_slice(text.as_bytes());
    }

    fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.now.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.now.put_u8(value as u8);
    }

    /// Tagged fields of which there is one.
    fn one_tag(&mut self, tag: u32, field: &[u8]) {
        self.varint(1);
        self.varint(tag);
        self.varint(field.len() as u32);
        self.now.put_slice(field);
    }

    /// No tagged fields.
    fn tags(&mut self) {
        if self.flexible {
            self.now.put_u8(0);
        }
    }

    fn finish(mut self, nodes: &[Endpoint]) -> Vec<Bytes> {
        self.nodes(nodes);
        self.done.push(self.now.freeze());
        let size: usize = self.done.iter().map(Bytes::len).sum();
        // The first piece begins with the room for the size: it is replaced by one that has it.
        if let Some(first) = self.done.first_mut() {
            let rest = first.split_off(4);
            *first = Bytes::copy_from_slice(&(size.saturating_sub(4) as u32).to_be_bytes());
            self.done.insert(1, rest);
        }
        self.done
    }
}
