//! Classes `channel`, `confirm` and `tx`; and what is left when a connection goes.

use tributary_shared::amqp::{Code, Method, Refusal};

use crate::queue::{
    ConnectionId, QueueId,
    state::{Answer, Channel, Mode, State, Transaction},
};

type At = (ConnectionId, u16);

impl State {
    pub(super) fn channel_open(&mut self, (connection, channel): At) -> Answer {
        let Some(state) = self.connections.get_mut(&connection) else { return Ok(()) };
        if state.channels.contains_key(&channel) {
            let detail = "second 'channel.open' seen";
            return Err(Refusal::new(Code::ChannelError, detail));
        }
        state.channels.insert(channel, Channel { first_tag: 1, ..Channel::default() });
        let channel_id = bytes::Bytes::new();
        self.reply(connection, channel, Method::ChannelOpenOk { channel_id });
        Ok(())
    }

    pub(super) fn channel_close(&mut self, (connection, channel): At) {
        self.close_channel(connection, channel);
        self.reply(connection, channel, Method::ChannelCloseOk {});
    }

    /// Its consumers go and its messages return.
    pub(in crate::queue) fn close_channel(&mut self, connection: ConnectionId, channel: u16) {
        let Some(state) = self.connections.get_mut(&connection) else { return };
        let Some(mut closed) = state.channels.remove(&channel) else { return };
        for slot in closed.slots.drain(..).flatten() {
            if let Some(queue) = self.queues.get_mut(&slot.queue) {
                queue.line.give_back(slot.position);
                self.touch(slot.queue);
            }
        }
        for (tag, consumer) in closed.consumers {
            self.leave(consumer.queue, connection, channel, &tag);
        }
    }

    /// A consumer leaves its queue; an auto-delete queue goes with its last.
    pub(in crate::queue) fn leave(
        &mut self,
        id: QueueId,
        connection: ConnectionId,
        channel: u16,
        tag: &str,
    ) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        let before = queue.consumers.len();
        queue
            .consumers
            .retain(|c| !(c.connection == connection && c.channel == channel && c.tag == tag));
        if queue.consumers.len() == before {
            return;
        }
        queue.exclusive_consumer = false;
        queue.used_ms = self.now_ms;
        if queue.consumers.is_empty() && queue.declared.auto_delete {
            self.delete_queue(id);
        } else {
            // The next consumer's turn, and perhaps the start of its expiry.
            self.touch(id);
        }
    }

    /// The connection is gone.
    pub(in crate::queue) fn detach(&mut self, connection: ConnectionId) {
        let Some(state) = self.connections.get(&connection) else { return };
        let mut channels: Vec<u16> = state.channels.keys().copied().collect();
        channels.sort_unstable();
        for channel in channels {
            self.close_channel(connection, channel);
        }
        let Some(state) = self.connections.remove(&connection) else { return };
        for queue in state.exclusive {
            self.delete_queue(queue);
        }
    }

    pub(super) fn confirm_select(&mut self, (connection, channel): At, nowait: bool) -> Answer {
        let Some(state) = self.channel(connection, channel) else { return Ok(()) };
        match state.mode {
            Mode::Plain => state.mode = Mode::Confirm(0),
            Mode::Confirm(_) => {}
            Mode::Transaction(_) => {
                let detail = "cannot switch from tx to confirm mode";
                return Err(Refusal::new(Code::PreconditionFailed, detail));
            }
        }
        if !nowait {
            self.reply(connection, channel, Method::ConfirmSelectOk {});
        }
        Ok(())
    }

    pub(super) fn tx_select(&mut self, (connection, channel): At) -> Answer {
        let Some(state) = self.channel(connection, channel) else { return Ok(()) };
        match state.mode {
            Mode::Plain => state.mode = Mode::Transaction(Transaction::default()),
            Mode::Transaction(_) => {}
            Mode::Confirm(_) => {
                let detail = "cannot switch from confirm to tx mode";
                return Err(Refusal::new(Code::PreconditionFailed, detail));
            }
        }
        self.reply(connection, channel, Method::TxSelectOk {});
        Ok(())
    }

    /// All of it goes into the same plan, so it is one log transaction.
    pub(super) fn tx_commit(&mut self, at: At) -> Answer {
        let transaction = self.transaction(at)?;
        for publish in transaction.publishes {
            self.enqueue(at, publish, None);
        }
        for settle in transaction.settles {
            self.settle(at, settle)?;
        }
        self.plan.answer(at.0, at.1, Method::TxCommitOk {});
        Ok(())
    }

    pub(super) fn tx_rollback(&mut self, at: At) -> Answer {
        self.transaction(at)?;
        self.reply(at.0, at.1, Method::TxRollbackOk {});
        Ok(())
    }

    /// What waits, taken out.
    fn transaction(&mut self, (connection, channel): At) -> Result<Transaction, Refusal> {
        match self.channel(connection, channel).map(|c| &mut c.mode) {
            Some(Mode::Transaction(transaction)) => Ok(std::mem::take(transaction)),
            _ => Err(Refusal::new(Code::PreconditionFailed, "channel is not transactional")),
        }
    }
}
