//! The bounded queue from the broker to one client.
//!
//! What happens to a slow reader, in this order: QoS 0 messages are dropped (and counted by the broker) once
//! `outbox_messages` or `outbox_bytes` wait; QoS 1 and 2 messages are held back by the session's window; a client that
//! leaves `outbox_answers` answers unread is not read from any more; one that takes no byte at all for `write_stall_ms`
//! is disconnected, and its session keeps what it was owed.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use super::Settings;
use crate::session::{Outgoing, event::ConnectionId};

/// The broker's end: never waits. QoS 0 is dropped and counted when it is full; QoS 1 and 2 are bounded by the window.
#[derive(Debug, Clone)]
pub struct Outbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connection: ConnectionId,
    messages: usize,
    bytes: usize,
    answers: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Outgoing>,
    bytes: usize,
    answers: usize,
    /// The host does not want to hear from it at the moment.
    paused: bool,
    closed: bool,
    writer: Option<Waker>,
    reader: Option<Waker>,
}

impl State {
    fn has_room(&self, answers: usize) -> bool {
        self.answers < answers && !self.paused || self.closed
    }
}

/// The client does not read fast enough: this QoS 0 message is not sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("outbox full")]
pub struct Full;

impl Outbox {
    /// Empty.
    pub fn new(connection: ConnectionId, settings: &Settings) -> Self {
        let shared = Shared {
            connection,
            messages: settings.outbox_messages,
            bytes: settings.outbox_bytes,
            answers: settings.outbox_answers,
            state: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whose.
    pub fn connection(&self) -> ConnectionId {
        self.shared.connection
    }

    /// Queues for writing. Only a QoS 0 message can be refused. After [`Outbox::close`] nothing is queued.
    pub fn send(&self, outgoing: Outgoing) -> Result<(), Full> {
        let mut state = self.state();
        if state.closed {
            return Ok(());
        }
        match &outgoing {
            Outgoing::Publish(delivery) => {
                let bytes = delivery.message.payload.len() + delivery.message.topic.len();
                let full = state.queue.len() >= self.shared.messages
                    || state.bytes.saturating_add(bytes) > self.shared.bytes;
                if full && delivery.packet_id.is_none() && !state.queue.is_empty() {
                    return Err(Full);
                }
                state.bytes += bytes;
            }
            Outgoing::Packet(_) => state.answers += 1,
        }
        state.queue.push_back(outgoing);
        let waker = state.writer.take();
        drop(state);
        wake(waker);
        Ok(())
    }

    /// Writes what is queued, then closes the socket.
    pub fn close(&self) {
        self.close_with(None);
    }

    /// As [`Outbox::close`], with a last packet.
    pub(super) fn close_with(&self, last: Option<Outgoing>) {
        let mut state = self.state();
        if !state.closed {
            state.queue.extend(last);
            state.closed = true;
        }
        let wakers = [state.writer.take(), state.reader.take()];
        drop(state);
        wakers.into_iter().for_each(wake);
    }

    /// Closes at once: what is queued is not written, only the last packet.
    pub(super) fn cut_with(&self, last: Option<Outgoing>) {
        let mut state = self.state();
        state.queue.clear();
        state.bytes = 0;
        state.answers = 0;
        state.queue.extend(last);
        state.closed = true;
        drop(state);
        self.close(); // Wakes both.
    }

    /// Nothing more is read from the client, until [`Outbox::resume`].
    pub fn pause(&self) {
        self.state().paused = true;
    }

    /// The client is read from again.
    pub fn resume(&self) {
        let mut state = self.state();
        state.paused = false;
        let waker = state.reader.take();
        drop(state);
        wake(waker);
    }

    /// Moves everything queued into `batch`, which is empty; waits for something to be queued. `false`: closed, nothing
    /// is left.
    pub(super) fn poll_take(
        &self,
        context: &mut Context<'_>,
        batch: &mut VecDeque<Outgoing>,
    ) -> Poll<bool> {
        let mut state = self.state();
        if state.queue.is_empty() {
            if state.closed {
                return Poll::Ready(false);
            }
            state.writer = Some(context.waker().clone());
            // An idle connection holds no memory for messages.
            state.queue = VecDeque::new();
            *batch = VecDeque::new();
            return Poll::Pending;
        }
        mem::swap(&mut state.queue, batch);
        state.bytes = 0;
        state.answers = 0;
        let waker = state.reader.take();
        drop(state);
        wake(waker);
        Poll::Ready(true)
    }

    /// The client has taken enough of its answers to be read from.
    pub(super) fn has_room(&self) -> bool {
        let state = self.state();
        state.has_room(self.shared.answers)
    }

    /// Waits until the client has taken enough of its answers to be read from again.
    pub(super) fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.has_room(self.shared.answers) {
            return Poll::Ready(());
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
