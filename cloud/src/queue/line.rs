//! PURE. The messages of one queue in order: what is ready, what is out and unacknowledged, what is only stored.
//!
//! ```text
//! positions:  floor .. returned/unacked .. window .. | loaded .. only stored .. | committed .. in flight .. | next
//! ```
//! A message keeps its position for life, so a requeued one is again where it was. Memory holds the unacknowledged, the
//! returned, and a window at the head; the backlog behind it is in the store and costs nothing here.
//! Change here: order. Not here: who gets what (`state`), reading the store (`load`).

use std::collections::{BTreeMap, VecDeque};

use super::message::{At, Shared};

/// Messages of a window at the most, and their bytes.
pub const WINDOW_MESSAGES: usize = 2048;
/// See [`WINDOW_MESSAGES`]. One larger message still fits into an empty window.
pub const WINDOW_BYTES: usize = 4 * 1024 * 1024;

/// A message in a queue.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Its place, ascending, never reused.
    pub position: u64,
    /// Its record.
    pub at: At,
    /// What is delivered.
    pub message: Shared,
    /// It may have been delivered before.
    pub redelivered: bool,
    /// When it leaves this queue unread, ms since 1970.
    pub expires_ms: Option<i64>,
}

impl Ready {
    fn bytes(&self) -> u64 {
        self.message.body.len() as u64
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Line {
    next: u64,
    committed: u64,
    loaded: u64,
    stored: u64,
    stored_bytes: u64,
    window: VecDeque<Ready>,
    window_size: usize,
    window_bytes: u64,
    returned: BTreeMap<u64, Ready>,
    unacked: BTreeMap<u64, Ready>,
    /// What arrives below was purged on its way.
    purged: u64,
}

impl Line {
    /// As found in the store: `stored` messages of `bytes` in `[floor, next)`.
    pub fn restored(floor: u64, next: u64, stored: u64, bytes: u64) -> Self {
        Self {
            next,
            committed: next,
            loaded: floor,
            stored,
            stored_bytes: bytes,
            ..Self::default()
        }
    }

    /// Place for a new message; it is not in the line before [`Line::arrive`].
    pub fn assign(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// A message at an assigned place is durable. They arrive in order of position. `false`: it was purged meanwhile.
    pub fn arrive(&mut self, ready: Ready) -> bool {
        self.committed = ready.position + 1;
        if ready.position < self.purged {
            if self.stored == 0 {
                self.loaded = self.committed;
            }
            return false;
        }
        let full = self.window.len() >= WINDOW_MESSAGES
            || !self.window.is_empty() && self.window_size >= WINDOW_BYTES;
        if self.stored > 0 || full {
            self.stored += 1;
            self.stored_bytes += ready.bytes();
        } else {
            self.loaded = ready.position + 1;
            self.push(ready);
        }
        true
    }

    fn push(&mut self, ready: Ready) {
        self.window_size += ready.message.size();
        self.window_bytes += ready.bytes();
        self.window.push_back(ready);
    }

    /// What to read next: from which position up to where. `None`: there is enough, or no more.
    pub fn wanted(&self) -> Option<(u64, u64)> {
        (self.stored > 0 && self.window.len() < WINDOW_MESSAGES / 4)
            .then_some((self.loaded, self.committed))
    }

    /// What was read of [`Line::wanted`], in order, up to before `until`; `lost` were in the store but have no record.
    pub fn fill(&mut self, read: Vec<Ready>, lost: u64, until: u64) {
        self.stored = self.stored.saturating_sub(read.len() as u64 + lost);
        for ready in read {
            self.stored_bytes = self.stored_bytes.saturating_sub(ready.bytes());
            self.push(ready);
        }
        self.loaded = until;
        if self.loaded >= self.committed {
            self.stored = 0;
            self.stored_bytes = 0;
        }
    }

    /// The next to deliver, if it is in memory.
    pub fn head(&self) -> Option<&Ready> {
        match (self.returned.first_key_value(), self.window.front()) {
            (Some((position, returned)), Some(head)) if *position < head.position => Some(returned),
            (Some((_, returned)), None) => Some(returned),
            (_, head) => head,
        }
    }

    /// Takes [`Line::head`] out.
    pub fn take(&mut self) -> Option<Ready> {
        let position = self.head()?.position;
        if let Some(returned) = self.returned.remove(&position) {
            return Some(returned);
        }
        let ready = self.window.pop_front()?;
        self.window_size -= ready.message.size();
        self.window_bytes -= ready.bytes();
        Some(ready)
    }

    /// It was handed to a consumer that will acknowledge it.
    pub fn lend(&mut self, ready: Ready) {
        self.unacked.insert(ready.position, ready);
    }

    /// It comes back from its consumer for good.
    pub fn settle(&mut self, position: u64) -> Option<Ready> {
        self.unacked.remove(&position)
    }

    /// It goes back to where it was.
    pub fn give_back(&mut self, position: u64) {
        if let Some(mut ready) = self.unacked.remove(&position) {
            ready.redelivered = true;
            self.returned.insert(position, ready);
        }
    }

    /// Messages that were published but are not durable yet.
    pub fn in_flight(&self) -> u64 {
        self.next - self.committed.max(self.purged)
    }

    /// Messages that wait.
    pub fn ready(&self) -> u64 {
        self.stored + (self.window.len() + self.returned.len()) as u64
    }

    /// Sum of the bodies of those in order behind the head.
    pub fn ready_bytes(&self) -> u64 {
        let returned: u64 = self.returned.values().map(Ready::bytes).sum();
        self.stored_bytes + self.window_bytes + returned
    }

    /// Messages that are out.
    pub fn unacked(&self) -> usize {
        self.unacked.len()
    }

    /// Nothing is stored below.
    pub fn floor(&self) -> u64 {
        let first = |map: &BTreeMap<u64, Ready>| map.first_key_value().map(|(p, _)| *p);
        let window = self.window.front().map(|r| r.position);
        let rest = if self.stored > 0 { self.loaded } else { self.committed };
        [first(&self.returned), first(&self.unacked), window, Some(rest)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(rest)
    }

    /// Drops what waits and what is on its way; returns the positions in memory, how many there were in all, and the range
    /// that is only stored.
    pub fn purge(&mut self) -> (Vec<u64>, u64, Option<(u64, u64)>) {
        let count = self.ready() + self.in_flight();
        self.purged = self.next;
        let mut positions: Vec<u64> = self.window.drain(..).map(|r| r.position).collect();
        positions.extend(std::mem::take(&mut self.returned).into_keys());
        let range = (self.stored > 0).then_some((self.loaded, self.committed));
        self.loaded = self.committed;
        (self.stored, self.stored_bytes) = (0, 0);
        (self.window_size, self.window_bytes) = (0, 0);
        (positions, count, range)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{log::PartitionId, queue::message::Message};

    fn ready(position: u64) -> Ready {
        Ready {
            position,
            at: At { partition: PartitionId(1), offset: position as i64 },
            message: Arc::new(Message {
                exchange: "".into(),
                routing_key: "q".into(),
                properties: vec![0, 0].into(),
                body: vec![0; 10].into(),
                expires_ms: None,
            }),
            redelivered: false,
            expires_ms: None,
        }
    }

    fn line(messages: u64) -> Line {
        let mut line = Line::default();
        for _ in 0..messages {
            let position = line.assign();
            line.arrive(ready(position));
        }
        line
    }

    #[test]
    fn a_returned_message_goes_back_to_where_it_was() {
        let mut line = line(4);
        for _ in 0..3 {
            let taken = line.take().unwrap();
            line.lend(taken);
        }
        line.give_back(1);
        line.give_back(0);
        assert_eq!((line.ready(), line.unacked(), line.floor()), (3, 1, 0));
        let order: Vec<_> =
            std::iter::from_fn(|| line.take()).map(|r| (r.position, r.redelivered)).collect();
        assert_eq!(order, [(0, true), (1, true), (3, false)]);
        assert_eq!(line.floor(), 2);
        assert!(line.settle(2).is_some() && line.settle(2).is_none());
        assert_eq!(line.floor(), 4);
    }

    #[test]
    fn a_backlog_stays_in_the_store_and_is_read_in_order() {
        let total = WINDOW_MESSAGES as u64 + 10;
        let mut line = line(total);
        assert_eq!((line.ready(), line.window.len()), (total, WINDOW_MESSAGES));
        assert_eq!(line.ready_bytes(), total * 10);
        assert_eq!(line.wanted(), None, "the window is full");
        for i in 0..WINDOW_MESSAGES as u64 {
            assert_eq!(line.take().unwrap().position, i);
        }
        let (from, to) = line.wanted().unwrap();
        assert_eq!((from, to), (WINDOW_MESSAGES as u64, total));
        let late = line.assign();
        line.arrive(ready(late));
        line.fill((from..to).map(ready).collect(), 0, to);
        assert_eq!(line.wanted(), Some((to, total + 1)), "what came meanwhile is read next");
        line.fill(vec![ready(late)], 0, late + 1);
        assert_eq!((line.ready(), line.wanted()), (11, None));
        assert_eq!(line.ready_bytes(), 110);
    }

    #[test]
    fn a_purge_takes_what_waits_and_leaves_what_is_out() {
        let mut line = line(WINDOW_MESSAGES as u64 + 5);
        let taken = line.take().unwrap();
        line.lend(taken);
        let (positions, count, range) = line.purge();
        assert_eq!((positions.len(), count), (WINDOW_MESSAGES - 1, WINDOW_MESSAGES as u64 + 4));
        assert_eq!(range, Some((WINDOW_MESSAGES as u64, WINDOW_MESSAGES as u64 + 5)));
        assert_eq!((line.ready(), line.unacked(), line.floor()), (0, 1, 0));
        line.give_back(0);
        assert_eq!(line.take().unwrap().position, 0);
    }

    #[test]
    fn what_is_on_its_way_is_purged_too() {
        let mut line = line(1);
        let (late, later) = (line.assign(), line.assign());
        assert_eq!((line.ready(), line.in_flight()), (1, 2));
        assert_eq!(line.purge().1, 3);
        assert_eq!((line.ready(), line.in_flight()), (0, 0));
        assert!(!line.arrive(ready(late)) && !line.arrive(ready(later)));
        let next = line.assign();
        assert!(line.arrive(ready(next)));
        assert_eq!((line.ready(), line.floor()), (1, next));
    }
}
