//! Class `queue`: declare, bind, unbind, purge, delete.

use bytestring::ByteString;
use tributary_shared::amqp::{Code, Method, Refusal, Table};

use super::exchange::{named, not_reserved};
use crate::{
    log::StateSpace,
    queue::{
        ConnectionId, Event, QueueId,
        arguments::{Arguments, inequivalent, same_flag},
        exchange::{Binding, Destination},
        limits,
        state::{Answer, Queue, QueueDeclared, State, Sweep},
        store::{self, Change, StoredQueue},
    },
};

type At = (ConnectionId, u16);

impl State {
    pub(super) fn queue_declare(&mut self, at: At, method: Method) -> Answer {
        let Method::QueueDeclare {
            queue,
            passive,
            durable,
            exclusive,
            auto_delete,
            nowait,
            arguments,
            ..
        } = method
        else {
            return Ok(());
        };
        let declared = QueueDeclared { durable, exclusive, auto_delete, arguments };
        let mut stored = false;
        let id = if passive {
            let name = self.name_or_last(at, queue)?;
            self.find_queue(at, &name)?
        } else {
            let name = if queue.is_empty() { self.generate("amq.gen-") } else { queue.clone() };
            if let Some(id) = self.names.get(&name).copied() {
                self.same_queue(at, id, &declared)?
            } else {
                if !queue.is_empty() {
                    not_reserved("queue", &name)?;
                }
                stored = declared.durable && !declared.exclusive;
                self.make_queue(at, name, declared)?
            }
        };
        let Some(queue) = self.queues.get_mut(&id) else { return Ok(()) };
        queue.used_ms = self.now_ms;
        let name = queue.name.clone();
        // What a client published and then asks for is counted, durable or not.
        let (ready, consumers) =
            (queue.line.ready() + queue.line.in_flight(), queue.consumers.len());
        if let Some(channel) = self.channel(at.0, at.1) {
            channel.last_queue = Some(name.clone());
        }
        self.set_deadline(id);
        if !nowait {
            let ok = Method::QueueDeclareOk {
                queue: name,
                message_count: u32::try_from(ready).unwrap_or(u32::MAX),
                consumer_count: consumers as u32,
            };
            self.reply_when(stored, at, ok);
        }
        Ok(())
    }

    fn same_queue(
        &self,
        at: At,
        id: QueueId,
        received: &QueueDeclared,
    ) -> Result<QueueId, Refusal> {
        let Some(queue) = self.queues.get(&id) else { return Err(self.no_queue("")) };
        let whose = self.whose(&queue.name);
        self.not_locked(at, queue)?;
        same_flag("durable", queue.declared.durable, received.durable, &whose)?;
        same_flag("exclusive", queue.declared.exclusive, received.exclusive, &whose)?;
        same_flag("auto_delete", queue.declared.auto_delete, received.auto_delete, &whose)?;
        inequivalent(&queue.declared.arguments, &received.arguments, &whose)?;
        Ok(id)
    }

    fn make_queue(
        &mut self,
        at: At,
        name: ByteString,
        declared: QueueDeclared,
    ) -> Result<QueueId, Refusal> {
        let arguments = Arguments::parse(&declared.arguments, &self.whose(&name))?;
        if self.queues.len() >= limits::QUEUES {
            return Err(Refusal::new(Code::ResourceError, "too many queues"));
        }
        let id = QueueId(self.next_queue);
        self.next_queue += 1;
        // Also for one that is not stored: its entries are, and its id must never mean another queue.
        let next = self.next_queue.to_be_bytes().to_vec();
        self.plan.changes.push(Change::put(StateSpace::Amqp, store::ids_key(&self.name), next));
        let owner = declared.exclusive.then_some(at.0);
        let queue = Queue::new(name.clone(), declared, arguments, owner, self.now_ms);
        if queue.is_stored() {
            let stored = StoredQueue {
                id,
                auto_delete: queue.declared.auto_delete,
                arguments: queue.declared.arguments.clone(),
            };
            let key = store::queue_key(&self.name, &name);
            self.plan.changes.push(Change::put(
                StateSpace::Amqp,
                key,
                store::encode_queue(&stored),
            ));
        }
        if let Some(connection) = owner.and_then(|owner| self.connections.get_mut(&owner)) {
            connection.exclusive.insert(id);
        }
        self.names.insert(name, id);
        self.queues.insert(id, queue);
        Ok(id)
    }

    pub(super) fn queue_bind(
        &mut self,
        at: At,
        queue: ByteString,
        exchange: ByteString,
        key: ByteString,
        arguments: Table,
        nowait: bool,
    ) -> Answer {
        let (id, binding) = self.binding(at, queue, key, arguments)?;
        let _ = id;
        let stored = self.add_binding(&exchange, binding)?;
        if !nowait {
            self.reply_when(stored, at, Method::QueueBindOk {});
        }
        Ok(())
    }

    pub(super) fn queue_unbind(
        &mut self,
        at: At,
        queue: ByteString,
        exchange: ByteString,
        key: ByteString,
        arguments: Table,
    ) -> Answer {
        let source = named(&exchange)?;
        match self.binding(at, queue, key, arguments) {
            Ok((_, binding)) => {
                self.remove_binding(&source, &binding);
                self.drop_unused(&source);
            }
            Err(refusal) if refusal.code == Code::NotFound => {}
            Err(refusal) => return Err(refusal),
        }
        self.reply_when(true, at, Method::QueueUnbindOk {});
        Ok(())
    }

    /// An empty queue name is the channel's last; an empty key with it is that queue's name.
    fn binding(
        &mut self,
        at: At,
        queue: ByteString,
        key: ByteString,
        arguments: Table,
    ) -> Result<(QueueId, Binding), Refusal> {
        let name = self.name_or_last(at, queue.clone())?;
        let key = if queue.is_empty() && key.is_empty() { name.clone() } else { key };
        let id = self.find_queue(at, &name)?;
        Ok((id, Binding { destination: Destination::Queue(id), key, arguments }))
    }

    pub(super) fn queue_purge(&mut self, at: At, queue: ByteString, nowait: bool) -> Answer {
        let name = self.name_or_last(at, queue)?;
        let id = self.find_queue(at, &name)?;
        let count = self.purge(id);
        if !nowait {
            let message_count = u32::try_from(count).unwrap_or(u32::MAX);
            self.plan.answer(at.0, at.1, Method::QueuePurgeOk { message_count });
        }
        Ok(())
    }

    /// What is only stored is marked purged in the same transaction and removed in the background.
    fn purge(&mut self, id: QueueId) -> u64 {
        let Some(queue) = self.queues.get_mut(&id) else { return 0 };
        queue.loading = None;
        let (positions, count, range) = queue.line.purge();
        self.plan.settled.extend(positions.into_iter().map(|position| (id, position)));
        self.plan.floors.insert(id);
        if let Some((from, until)) = range {
            let key = store::purged_key(id, from);
            let value = until.to_be_bytes().to_vec();
            self.plan.changes.push(Change::put(StateSpace::QueueAck, key, value));
            self.sweeps.push(Sweep { queue: id, from, until });
        }
        count
    }

    pub(super) fn queue_delete(
        &mut self,
        at: At,
        queue: ByteString,
        (if_unused, if_empty): (bool, bool),
        nowait: bool,
    ) -> Answer {
        let name = self.name_or_last(at, queue)?;
        let id = self.names.get(&name).copied();
        let mut count = 0;
        if let Some(queue) = id.and_then(|id| self.queues.get(&id)) {
            self.not_locked(at, queue)?;
            let refuse = |why: &str| {
                let detail = format!("{} {why}", self.whose(&name));
                Err(Refusal::new(Code::PreconditionFailed, detail))
            };
            if if_unused && !queue.consumers.is_empty() {
                return refuse("in use");
            }
            count = queue.line.ready() + queue.line.in_flight();
            if if_empty && count > 0 {
                return refuse("not empty");
            }
        }
        // Before its consumers are told: a client that waits for this answer on a consuming channel gets it first.
        if !nowait {
            let message_count = u32::try_from(count).unwrap_or(u32::MAX);
            self.plan.answer(at.0, at.1, Method::QueueDeleteOk { message_count });
        }
        if let Some(id) = id {
            self.delete_queue(id);
        }
        Ok(())
    }

    /// With its bindings and messages; its consumers are told.
    pub(in crate::queue) fn delete_queue(&mut self, id: QueueId) {
        let Some(queue) = self.queues.get_mut(&id) else { return };
        let sources = std::mem::take(&mut queue.bound).into_iter().collect();
        self.unbind_queue(id, sources);
        let Some(queue) = self.queues.remove(&id) else { return };
        self.names.remove(&queue.name);
        if let Some(deadline) = queue.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        if queue.is_stored() {
            let key = store::queue_key(&self.name, &queue.name);
            self.plan.changes.push(Change::delete(StateSpace::Amqp, key));
        }
        self.plan.changes.push(Change::delete(StateSpace::QueueAck, store::floor_key(id)));
        self.sweeps.push(Sweep { queue: id, from: 0, until: u64::MAX });
        if let Some(connection) = queue.owner.and_then(|owner| self.connections.get_mut(&owner)) {
            connection.exclusive.remove(&id);
        }
        for consumer in queue.consumers {
            if let Some(channel) = self.channel(consumer.connection, consumer.channel) {
                channel.consumers.remove(&consumer.tag);
            }
            let method = Method::BasicCancel { consumer_tag: consumer.tag, nowait: true };
            self.plan.answer(consumer.connection, consumer.channel, method);
        }
        for (connection, channel, _) in queue.gets {
            let method = Method::BasicGetEmpty { cluster_id: ByteString::new() };
            self.events.push((connection, Event::Method { channel, method }));
        }
    }

    pub(super) fn name_or_last(&mut self, at: At, name: ByteString) -> Result<ByteString, Refusal> {
        if !name.is_empty() {
            return Ok(name);
        }
        self.channel(at.0, at.1)
            .and_then(|channel| channel.last_queue.clone())
            .ok_or_else(|| Refusal::new(Code::NotFound, "no previously declared queue"))
    }

    /// A queue that this connection may use.
    pub(super) fn find_queue(&self, at: At, name: &str) -> Result<QueueId, Refusal> {
        let id = self.names.get(name).ok_or_else(|| self.no_queue(name))?;
        let queue = self.queues.get(id).ok_or_else(|| self.no_queue(name))?;
        self.not_locked(at, queue)?;
        Ok(*id)
    }

    fn not_locked(&self, at: At, queue: &Queue) -> Answer {
        if queue.owner.is_none_or(|owner| owner == at.0) {
            return Ok(());
        }
        let detail = format!(
            "cannot obtain exclusive access to locked {}. It could be originally declared on another connection \
             or the exclusive property value does not match that of the original declaration.",
            self.whose(&queue.name)
        );
        Err(Refusal::new(Code::ResourceLocked, detail))
    }

    pub(super) fn whose(&self, queue: &str) -> String {
        format!("queue '{queue}' in vhost '{}'", self.name)
    }
}
