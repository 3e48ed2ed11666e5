//! Class `basic` on the reading side: qos, consume, cancel, get.

use bytestring::ByteString;
use tributary_shared::amqp::{Code, Method, Refusal};

use crate::queue::{
    ConnectionId, QueueId, limits,
    state::{Answer, ChannelConsumer, Consumer, State},
};

type At = (ConnectionId, u16);

impl State {
    pub(super) fn basic_qos(&mut self, at: At, size: u32, count: u16, global: bool) -> Answer {
        if size != 0 {
            return Err(Refusal::new(Code::NotImplemented, format!("prefetch_size!=0 ({size})")));
        }
        let Some(channel) = self.channel(at.0, at.1) else { return Ok(()) };
        if global {
            channel.prefetch_all = count;
        } else {
            channel.prefetch = count;
        }
        channel.stalled = false;
        let queues: Vec<QueueId> = channel.consumers.values().map(|c| c.queue).collect();
        self.touch_all(queues);
        self.reply(at.0, at.1, Method::BasicQosOk {});
        Ok(())
    }

    pub(super) fn basic_consume(&mut self, at: At, method: Method) -> Answer {
        let Method::BasicConsume { queue, consumer_tag, no_ack, exclusive, nowait, .. } = method
        else {
            return Ok(());
        };
        let name = self.name_or_last(at, queue)?;
        let id = self.find_queue(at, &name)?;
        let Some(queue) = self.queues.get(&id) else { return Ok(()) };
        if queue.exclusive_consumer || exclusive && !queue.consumers.is_empty() {
            let detail = format!("{} in exclusive use", self.whose(&name));
            return Err(Refusal::new(Code::AccessRefused, detail));
        }
        let tag = if consumer_tag.is_empty() { self.generate("amq.ctag-") } else { consumer_tag };
        let Some(channel) = self.channel(at.0, at.1) else { return Ok(()) };
        if channel.consumers.contains_key(&tag) {
            let detail = format!("attempt to reuse consumer tag '{tag}'");
            return Err(Refusal::new(Code::NotAllowed, detail));
        }
        if channel.consumers.len() >= limits::CONSUMERS {
            return Err(Refusal::new(Code::ResourceError, "too many consumers on this channel"));
        }
        let prefetch = channel.prefetch;
        let consumer = ChannelConsumer { queue: id, no_ack, prefetch, outstanding: 0 };
        channel.consumers.insert(tag.clone(), consumer);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.exclusive_consumer = exclusive;
            let consumer = Consumer { connection: at.0, channel: at.1, tag: tag.clone() };
            queue.consumers.push_back(consumer);
        }
        self.set_deadline(id);
        self.touch(id);
        if !nowait {
            self.reply(at.0, at.1, Method::BasicConsumeOk { consumer_tag: tag });
        }
        Ok(())
    }

    pub(super) fn basic_cancel(&mut self, at: At, tag: ByteString, nowait: bool) {
        let consumer = self.channel(at.0, at.1).and_then(|channel| channel.consumers.remove(&tag));
        if let Some(consumer) = consumer {
            self.leave(consumer.queue, at.0, at.1, &tag);
        }
        if !nowait {
            self.reply(at.0, at.1, Method::BasicCancelOk { consumer_tag: tag });
        }
    }

    /// Waits its turn: a backlog may have to be read first.
    pub(super) fn basic_get(&mut self, at: At, queue: ByteString, no_ack: bool) -> Answer {
        let name = self.name_or_last(at, queue)?;
        let id = self.find_queue(at, &name)?;
        if let Some(queue) = self.queues.get_mut(&id) {
            if queue.gets.len() >= limits::WAITING_GETS {
                return Err(Refusal::new(Code::ResourceError, "too many gets wait on this queue"));
            }
            queue.used_ms = self.now_ms;
            queue.gets.push_back((at.0, at.1, no_ack));
        }
        self.deliver_queue(id);
        Ok(())
    }
}
