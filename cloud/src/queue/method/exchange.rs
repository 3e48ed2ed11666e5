//! Class `exchange`: declare, delete, bind, unbind.

use bytestring::ByteString;
use tributary_shared::amqp::{Code, Method, Refusal, Table};

use crate::{
    log::StateSpace,
    queue::{
        ConnectionId, QueueId,
        arguments::{inequivalent, same_flag},
        exchange::{Binding, Declared, Destination, Exchange, Kind},
        limits,
        state::{Answer, State},
        store::{self, Change},
    },
};

type At = (ConnectionId, u16);

/// Names that only the server gives.
const RESERVED: &str = "amq.";

impl State {
    pub(super) fn exchange_declare(&mut self, at: At, method: Method) -> Answer {
        let Method::ExchangeDeclare {
            exchange: name,
            kind,
            passive,
            durable,
            auto_delete,
            internal,
            nowait,
            arguments,
            ..
        } = method
        else {
            return Ok(());
        };
        let mut stored = false;
        if passive {
            if !name.is_empty() && !self.exchanges.contains_key(&name) {
                return Err(self.no_exchange(&name));
            }
        } else {
            let Some(kind) = Kind::from_name(&kind) else {
                return Err(Refusal::new(
                    Code::CommandInvalid,
                    format!("unknown exchange type '{kind}'"),
                ));
            };
            let name = named(&name)?;
            let declared = Declared { kind, durable, auto_delete, internal, arguments };
            if let Some(current) = self.exchanges.get(&name) {
                self.same_exchange(&name, &current.declared, &declared)?;
            } else {
                not_reserved("exchange", &name)?;
                stored = self.make_exchange(&name, declared)?;
            }
        }
        if !nowait {
            self.reply_when(stored, at, Method::ExchangeDeclareOk {});
        }
        Ok(())
    }

    fn same_exchange(&self, name: &str, current: &Declared, received: &Declared) -> Answer {
        let whose = format!("exchange '{name}' in vhost '{}'", self.name);
        same_flag("type", current.kind, received.kind, &whose)?;
        same_flag("durable", current.durable, received.durable, &whose)?;
        same_flag("auto_delete", current.auto_delete, received.auto_delete, &whose)?;
        same_flag("internal", current.internal, received.internal, &whose)?;
        let alternate = |table: &Table| {
            let mut only = table.clone();
            only.0.retain(|(name, _)| name == "alternate-exchange");
            only
        };
        let (current, received) = (alternate(&current.arguments), alternate(&received.arguments));
        if current == received {
            Ok(())
        } else {
            inequivalent_alternate(&current, &received, &whose)
        }
    }

    fn make_exchange(&mut self, name: &ByteString, declared: Declared) -> Result<bool, Refusal> {
        if self.exchanges.len() >= limits::EXCHANGES {
            return Err(Refusal::new(Code::ResourceError, "too many exchanges"));
        }
        let stored = declared.durable;
        if stored {
            let key = store::exchange_key(&self.name, name);
            self.plan.changes.push(Change::put(
                StateSpace::Amqp,
                key,
                store::encode_exchange(&declared),
            ));
        }
        self.exchanges.insert(name.clone(), Exchange::new(declared));
        Ok(stored)
    }

    pub(super) fn exchange_delete(
        &mut self,
        at: At,
        name: &ByteString,
        if_unused: bool,
        nowait: bool,
    ) -> Answer {
        let name = named(name)?;
        not_reserved("exchange", &name)?;
        let mut stored = false;
        if let Some(exchange) = self.exchanges.get(&name) {
            if if_unused && !exchange.is_empty() {
                let detail = format!("exchange '{name}' in vhost '{}' in use", self.name);
                return Err(Refusal::new(Code::PreconditionFailed, detail));
            }
            stored = exchange.declared.durable;
            self.remove_exchange(&name);
        }
        if !nowait {
            self.reply_when(stored, at, Method::ExchangeDeleteOk {});
        }
        Ok(())
    }

    /// With its bindings, from it and to it.
    fn remove_exchange(&mut self, name: &ByteString) {
        let mut bindings: Vec<(ByteString, Binding)> = Vec::new();
        if let Some(exchange) = self.exchanges.get(name) {
            bindings.extend(exchange.bindings().map(|b| (name.clone(), b.clone())));
        }
        let destination = Destination::Exchange(name.clone());
        for (source, exchange) in &self.exchanges {
            let to = exchange.bindings_to(&destination);
            bindings.extend(to.iter().map(|b| (source.clone(), b.clone())));
        }
        let mut sources: Vec<ByteString> = Vec::new();
        for (source, binding) in bindings {
            self.remove_binding(&source, &binding);
            sources.push(source);
        }
        if let Some(gone) = self.exchanges.remove(name)
            && gone.declared.durable
        {
            let key = store::exchange_key(&self.name, name);
            self.plan.changes.push(Change::delete(StateSpace::Amqp, key));
        }
        sources.retain(|source| source != name);
        for source in &sources {
            self.drop_unused(source);
        }
    }

    /// An auto-delete exchange goes with its last binding.
    pub(in crate::queue) fn drop_unused(&mut self, name: &ByteString) {
        if self.exchanges.get(name).is_some_and(|e| e.declared.auto_delete && e.is_empty()) {
            self.remove_exchange(name);
        }
    }

    pub(super) fn exchange_bind(&mut self, at: At, method: Method) -> Answer {
        match method {
            Method::ExchangeBind {
                destination,
                source,
                routing_key: key,
                nowait,
                arguments,
                ..
            } => {
                let destination = named(&destination)?;
                if !self.exchanges.contains_key(&destination) {
                    return Err(self.no_exchange(&destination));
                }
                let destination = Destination::Exchange(destination);
                let stored = self.add_binding(&source, Binding { destination, key, arguments })?;
                if !nowait {
                    self.reply_when(stored, at, Method::ExchangeBindOk {});
                }
            }
            Method::ExchangeUnbind {
                destination,
                source,
                routing_key: key,
                nowait,
                arguments,
                ..
            } => {
                let destination = Destination::Exchange(named(&destination)?);
                let source = named(&source)?;
                self.remove_binding(&source, &Binding { destination, key, arguments });
                self.drop_unused(&source);
                if !nowait {
                    self.reply_when(true, at, Method::ExchangeUnbindOk {});
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns whether it must become durable first. Every new binding saves the router's cursors with it, so that a
    /// restart routes nothing through it that came before.
    pub(super) fn add_binding(
        &mut self,
        source: &ByteString,
        binding: Binding,
    ) -> Result<bool, Refusal> {
        let source = named(source)?;
        let Some(exchange) = self.exchanges.get_mut(&source) else {
            return Err(self.no_exchange(&source));
        };
        if exchange.len() >= limits::BINDINGS {
            return Err(Refusal::new(
                Code::ResourceError,
                format!("too many bindings of exchange '{source}'"),
            ));
        }
        if !exchange.bind(binding.clone()) {
            return Ok(true);
        }
        if let Destination::Queue(id) = &binding.destination
            && let Some(queue) = self.queues.get_mut(id)
        {
            queue.bound.insert(source.clone());
        }
        let stored = self.is_stored(&source, &binding);
        if stored {
            let key = store::binding_key(&self.name, &source, &binding);
            self.plan.changes.push(Change::put(StateSpace::Amqp, key, vec![1]));
            self.plan.save_cursors = true;
        }
        Ok(stored)
    }

    pub(in crate::queue) fn remove_binding(&mut self, source: &ByteString, binding: &Binding) {
        let stored = self.is_stored(source, binding);
        let Some(exchange) = self.exchanges.get_mut(source) else { return };
        if exchange.unbind(binding) && stored {
            let key = store::binding_key(&self.name, source, binding);
            self.plan.changes.push(Change::delete(StateSpace::Amqp, key));
        }
    }

    /// All bindings of a queue that goes.
    pub(super) fn unbind_queue(&mut self, id: QueueId, sources: Vec<ByteString>) {
        let destination = Destination::Queue(id);
        for source in sources {
            let Some(exchange) = self.exchanges.get(&source) else { continue };
            for binding in exchange.bindings_to(&destination).to_vec() {
                self.remove_binding(&source, &binding);
            }
            self.drop_unused(&source);
        }
    }
}

/// The default exchange has no name and cannot be changed.
pub(super) fn named(name: &ByteString) -> Result<ByteString, Refusal> {
    if name.is_empty() {
        return Err(Refusal::new(
            Code::AccessRefused,
            "operation not permitted on the default exchange",
        ));
    }
    Ok(name.clone())
}

/// 403 for names that start with `amq.`.
pub(super) fn not_reserved(what: &str, name: &str) -> Answer {
    if name.starts_with(RESERVED) {
        let detail = format!("{what} name '{name}' contains reserved prefix 'amq.*'");
        return Err(Refusal::new(Code::AccessRefused, detail));
    }
    Ok(())
}

fn inequivalent_alternate(current: &Table, received: &Table, whose: &str) -> Answer {
    // The same words as for queues, of which only the compared names differ.
    let rename = |table: &Table| {
        let value = table.get("alternate-exchange").cloned();
        value.map_or_else(Table::default, |v| Table::default().with("x-overflow", v))
    };
    inequivalent(&rename(current), &rename(received), whose).map_err(|mut refusal| {
        refusal.detail = refusal.detail.replacen("x-overflow", "alternate-exchange", 1);
        refusal
    })
}
