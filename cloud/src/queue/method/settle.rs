//! `basic.ack nack reject recover`: what happens to delivered messages.

use tributary_shared::amqp::{Code, Method, Refusal};

use crate::queue::{
    ConnectionId,
    dead_letter::Reason,
    state::{Answer, Channel, Mode, Settle, Settled, State, Unacked},
};

type At = (ConnectionId, u16);

impl State {
    pub(super) fn basic_settle(
        &mut self,
        at: At,
        tag: u64,
        multiple: bool,
        how: Settled,
    ) -> Answer {
        let settle = Settle { tag, multiple, how };
        let Some(channel) = self.channel(at.0, at.1) else { return Ok(()) };
        if let Mode::Transaction(_) = channel.mode {
            channel.check(settle)?;
            if let Mode::Transaction(transaction) = &mut channel.mode {
                if transaction.settles.len() >= crate::queue::limits::UNACKED {
                    return Err(Refusal::new(Code::PreconditionFailed, "transaction is too large"));
                }
                transaction.settles.push(settle);
            }
            return Ok(());
        }
        self.settle(at, settle)
    }

    pub(super) fn settle(&mut self, at: At, settle: Settle) -> Answer {
        let Some(channel) = self.channel(at.0, at.1) else { return Ok(()) };
        channel.check(settle)?;
        if settle.multiple {
            let until = if settle.tag == 0 { u64::MAX } else { settle.tag };
            while let Some(first) = channel_first(self.channel(at.0, at.1), until) {
                self.settle_one(at, first, settle.how);
            }
        } else {
            self.settle_one(at, settle.tag, settle.how);
        }
        Ok(())
    }

    fn settle_one(&mut self, at: At, tag: u64, how: Settled) {
        let Some(channel) = self.channel(at.0, at.1) else { return };
        let stalled = std::mem::take(&mut channel.stalled);
        let Some(unacked) = channel.take(tag) else { return };
        let waiting: Vec<_> = if stalled {
            channel.consumers.values().map(|c| c.queue).collect()
        } else {
            Vec::new()
        };
        let id = unacked.queue;
        self.touch(id);
        self.touch_all(waiting);
        let Some(queue) = self.queues.get_mut(&id) else { return };
        match how {
            Settled::Requeued => queue.line.give_back(unacked.position),
            Settled::Acked => {
                if queue.line.settle(unacked.position).is_some() {
                    self.plan.settled.push((id, unacked.position));
                }
            }
            Settled::Rejected => {
                if let Some(ready) = queue.line.settle(unacked.position) {
                    self.dead_letter(id, ready, Reason::Rejected);
                }
            }
        }
    }

    pub(super) fn basic_recover(&mut self, at: At, requeue: bool, answer: bool) -> Answer {
        if !requeue {
            return Err(Refusal::new(Code::NotImplemented, "requeue=false"));
        }
        while let Some(tag) = channel_first(self.channel(at.0, at.1), u64::MAX) {
            self.settle_one(at, tag, Settled::Requeued);
        }
        if answer {
            self.reply(at.0, at.1, Method::BasicRecoverOk {});
        }
        Ok(())
    }
}

/// The oldest unsettled tag of at most `until`.
fn channel_first(channel: Option<&mut Channel>, until: u64) -> Option<u64> {
    let channel = channel?;
    channel.trim();
    (channel.unacked > 0 && channel.first_tag <= until).then_some(channel.first_tag)
}

impl Channel {
    /// Tag 0 with `multiple` is all there are; any other must be out.
    fn check(&self, settle: Settle) -> Answer {
        let Settle { tag, multiple, .. } = settle;
        let next = self.first_tag + self.slots.len() as u64;
        let known = if multiple {
            tag == 0 || tag >= self.first_tag && tag < next
        } else {
            self.slot(tag).is_some_and(|slot| self.slots.get(slot).is_some_and(Option::is_some))
        };
        if known {
            Ok(())
        } else {
            Err(Refusal::new(Code::PreconditionFailed, format!("unknown delivery tag {tag}")))
        }
    }

    fn slot(&self, tag: u64) -> Option<usize> {
        usize::try_from(tag.checked_sub(self.first_tag)?).ok()
    }

    /// Takes a delivered message out; its consumer may have another.
    pub(in crate::queue) fn take(&mut self, tag: u64) -> Option<Unacked> {
        let slot = self.slot(tag)?;
        let unacked = self.slots.get_mut(slot)?.take()?;
        self.unacked -= 1;
        self.unacked_bytes -= unacked.size;
        if let Some(consumer) =
            unacked.consumer.as_ref().and_then(|tag| self.consumers.get_mut(tag))
        {
            consumer.outstanding = consumer.outstanding.saturating_sub(1);
        }
        self.trim();
        Some(unacked)
    }

    fn trim(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first_tag += 1;
        }
    }

    /// The tag of the next delivery; `unacked` waits under it for its acknowledgement.
    pub(in crate::queue) fn next_tag(&mut self, unacked: Option<Unacked>) -> u64 {
        let tag = self.first_tag + self.slots.len() as u64;
        match unacked {
            None if self.slots.is_empty() => self.first_tag += 1,
            None => self.slots.push_back(None),
            Some(unacked) => {
                self.unacked += 1;
                self.unacked_bytes += unacked.size;
                self.slots.push_back(Some(unacked));
            }
        }
        tag
    }
}
