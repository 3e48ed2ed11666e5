//! What each method does, one file a class. All of it is `State`; errors are the refusals of AMQP.md 9.

mod basic;
mod channel;
mod exchange;
mod publish;
mod queue;
mod settle;

use tributary_shared::amqp::{Code, Method, Refusal};

use super::{
    ConnectionId,
    state::{Answer, Settled, State},
};

impl State {
    /// One method of an open channel (or `channel.open`).
    pub(super) fn method(
        &mut self,
        connection: ConnectionId,
        channel: u16,
        method: Method,
    ) -> Answer {
        use Method as M;
        let at = (connection, channel);
        match method {
            M::ChannelOpen { .. } => self.channel_open(at),
            M::ChannelClose { .. } => {
                self.channel_close(at);
                Ok(())
            }
            M::ChannelFlow { active: true } => {
                self.reply(connection, channel, M::ChannelFlowOk { active: true });
                Ok(())
            }
            M::ChannelFlow { active: false } => {
                Err(Refusal::new(Code::NotImplemented, "active=false"))
            }
            M::ExchangeDeclare { .. } => self.exchange_declare(at, method),
            M::ExchangeDelete { exchange, if_unused, nowait, .. } => {
                self.exchange_delete(at, &exchange, if_unused, nowait)
            }
            M::ExchangeBind { .. } | M::ExchangeUnbind { .. } => self.exchange_bind(at, method),
            M::QueueDeclare { .. } => self.queue_declare(at, method),
            M::QueueBind { queue, exchange, routing_key, nowait, arguments, .. } => {
                self.queue_bind(at, queue, exchange, routing_key, arguments, nowait)
            }
            M::QueueUnbind { queue, exchange, routing_key, arguments, .. } => {
                self.queue_unbind(at, queue, exchange, routing_key, arguments)
            }
            M::QueuePurge { queue, nowait, .. } => self.queue_purge(at, queue, nowait),
            M::QueueDelete { queue, if_unused, if_empty, nowait, .. } => {
                self.queue_delete(at, queue, (if_unused, if_empty), nowait)
            }
            M::BasicQos { prefetch_size, prefetch_count, global } => {
                self.basic_qos(at, prefetch_size, prefetch_count, global)
            }
            M::BasicConsume { .. } => self.basic_consume(at, method),
            M::BasicCancel { consumer_tag, nowait } => {
                self.basic_cancel(at, consumer_tag, nowait);
                Ok(())
            }
            M::BasicGet { queue, no_ack, .. } => self.basic_get(at, queue, no_ack),
            M::BasicAck { delivery_tag, multiple } => {
                self.basic_settle(at, delivery_tag, multiple, Settled::Acked)
            }
            M::BasicReject { delivery_tag, requeue } => {
                self.basic_settle(at, delivery_tag, false, how(requeue))
            }
            M::BasicNack { delivery_tag, multiple, requeue } => {
                self.basic_settle(at, delivery_tag, multiple, how(requeue))
            }
            M::BasicRecover { requeue } => self.basic_recover(at, requeue, true),
            M::BasicRecoverAsync { requeue } => self.basic_recover(at, requeue, false),
            M::ConfirmSelect { nowait } => self.confirm_select(at, nowait),
            M::TxSelect {} => self.tx_select(at),
            M::TxCommit {} => self.tx_commit(at),
            M::TxRollback {} => self.tx_rollback(at),
            other => {
                let (class, method) = other.id();
                let detail = format!("method {class}.{method} is not for a server");
                Err(Refusal::new(Code::CommandInvalid, detail))
            }
        }
    }
}

fn how(requeue: bool) -> Settled {
    if requeue { Settled::Requeued } else { Settled::Rejected }
}
