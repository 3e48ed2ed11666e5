//! The engine for tests and trials: everything in memory, nothing survives the process.
//!
//! Holds: maps per shard, one as it is and one as it would be after a crash. By default each write is durable at once;
//! [`MemoryEngine::manual`] makes durability, loss and failure something a test decides.
//! Not here: what keys mean (`log::keys`).

use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Bound, Range},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{CommitId, Engine, EngineError, ScanLimit, Shard, ShardId, Write};

type Map = BTreeMap<Bytes, Bytes>;

/// Shards in memory. Clones share the data.
#[derive(Clone)]
pub struct MemoryEngine {
    shards: Arc<Vec<Arc<Cell>>>,
}

/// One shard's data, shared by its openings.
struct Cell {
    id: ShardId,
    manual: bool,
    state: Mutex<State>,
    /// Moves with every change of durability, opening or close.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// With everything written.
    now: Map,
    /// What a crash leaves.
    durable: Map,
    /// Written, not durable, oldest first.
    waiting: VecDeque<(CommitId, Vec<Write>)>,
    /// The opening that may write.
    opening: u64,
    written: CommitId,
    durable_to: CommitId,
    fail_writes: u32,
    fail_durability: bool,
    closed: bool,
}

impl MemoryEngine {
    /// Each write is durable when `write` returns.
    pub fn new(shards: u16) -> Self {
        Self::with(shards, false)
    }

    /// Writes become durable only by [`MemoryEngine::flush`], [`MemoryEngine::flush_one`] or `Shard::close`.
    pub fn manual(shards: u16) -> Self {
        Self::with(shards, true)
    }

    fn with(shards: u16, manual: bool) -> Self {
        let cell = |id| {
            Arc::new(Cell {
                id: ShardId(id),
                manual,
                state: Mutex::default(),
                changed: watch::Sender::new(0),
            })
        };
        Self { shards: Arc::new((0..shards.max(1)).map(cell).collect()) }
    }

    /// Makes everything written so far durable.
    pub fn flush(&self) {
        for cell in self.shards.iter() {
            cell.change(|state| while state.settle_one() {});
        }
    }

    /// Makes the oldest waiting commit of a shard durable; `false` if none waits.
    pub fn flush_one(&self, shard: ShardId) -> bool {
        self.shards.get(usize::from(shard.0)).is_some_and(|cell| cell.change(State::settle_one))
    }

    /// Commits of a shard that are written and not durable.
    pub fn waiting(&self, shard: ShardId) -> usize {
        self.shards.get(usize::from(shard.0)).map_or(0, |cell| cell.lock().waiting.len())
    }

    /// Power cut: forgets what was not durable; every opening so far is fenced.
    pub fn crash(&self) {
        for cell in self.shards.iter() {
            cell.change(State::forget);
        }
    }

    /// The next `times` writes of a shard fail and change nothing.
    pub fn fail_writes(&self, shard: ShardId, times: u32) {
        if let Some(cell) = self.shards.get(usize::from(shard.0)) {
            cell.change(|state| state.fail_writes = times);
        }
    }

    /// What waits will never be durable: its waiters get an error, and the next opening does not see it.
    pub fn fail_durability(&self, shard: ShardId) {
        if let Some(cell) = self.shards.get(usize::from(shard.0)) {
            cell.change(|state| state.fail_durability = true);
        }
    }
}

impl State {
    fn settle_one(&mut self) -> bool {
        let Some((commit, writes)) = self.waiting.pop_front() else { return false };
        apply(&mut self.durable, &writes);
        self.durable_to = commit;
        true
    }

    fn forget(&mut self) {
        self.waiting.clear();
        self.now = self.durable.clone();
        self.opening += 1;
        self.fail_durability = false;
        self.closed = false;
    }
}

impl Cell {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let answer = f(&mut self.lock());
        self.changed.send_modify(|version| *version += 1);
        answer
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    fn shards(&self) -> u16 {
        u16::try_from(self.shards.len()).unwrap_or(u16::MAX)
    }

    async fn open(&self, shard: ShardId) -> Result<Arc<dyn Shard>, EngineError> {
        let cell = self
            .shards
            .get(usize::from(shard.0))
            .ok_or_else(|| EngineError::Store(format!("memory has no shard {}", shard.0)))?;
        // What an opening reads is durable, so what was not is gone, as after a lost connection to a real store.
        let opening = cell.change(|state| {
            state.forget();
            state.opening
        });
        Ok(Arc::new(MemoryShard { cell: Arc::clone(cell), opening }))
    }
}

struct MemoryShard {
    cell: Arc<Cell>,
    opening: u64,
}

impl MemoryShard {
    /// The state, if this opening still owns it.
    fn owned(&self) -> Result<MutexGuard<'_, State>, EngineError> {
        let state = self.cell.lock();
        match () {
            () if state.opening != self.opening => Err(EngineError::Fenced(self.cell.id)),
            () if state.closed => Err(EngineError::Closed),
            () => Ok(state),
        }
    }
}

#[async_trait]
impl Shard for MemoryShard {
    async fn write(&self, writes: Vec<Write>) -> Result<CommitId, EngineError> {
        let commit = {
            let mut state = self.owned()?;
            if state.fail_writes > 0 {
                state.fail_writes -= 1;
                return Err(EngineError::Store("memory: write failed as told".into()));
            }
            state.written.0 += 1;
            let commit = state.written;
            apply(&mut state.now, &writes);
            state.waiting.push_back((commit, writes));
            if !self.cell.manual {
                state.settle_one();
            }
            commit
        };
        self.cell.changed.send_modify(|version| *version += 1);
        Ok(commit)
    }

    async fn durable(&self, commit: CommitId) -> Result<(), EngineError> {
        let mut changed = self.cell.changed.subscribe();
        loop {
            {
                let state = self.cell.lock();
                if state.opening != self.opening {
                    return Err(EngineError::Fenced(self.cell.id));
                }
                if state.durable_to >= commit {
                    return Ok(());
                }
                if state.fail_durability {
                    return Err(EngineError::Store("memory: flush failed as told".into()));
                }
                if state.closed {
                    return Err(EngineError::Closed);
                }
            }
            if changed.changed().await.is_err() {
                return Err(EngineError::Closed);
            }
        }
    }

    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.owned()?.now.get(key).cloned())
    }

    async fn scan(
        &self,
        range: Range<Bytes>,
        limit: ScanLimit,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError> {
        let state = self.owned()?;
        let mut found = Vec::new();
        let mut bytes = 0;
        if range.start >= range.end {
            return Ok(found);
        }
        for (key, value) in
            state.now.range((Bound::Included(range.start), Bound::Excluded(range.end)))
        {
            bytes += key.len() + value.len();
            if !found.is_empty() && (found.len() >= limit.entries || bytes > limit.bytes) {
                break;
            }
            found.push((key.clone(), value.clone()));
        }
        Ok(found)
    }

    async fn close(&self) -> Result<(), EngineError> {
        drop(self.owned()?);
        self.cell.change(|state| {
            while state.settle_one() {}
            state.closed = true;
        });
        Ok(())
    }
}

fn apply(map: &mut Map, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Put(key, value) => drop(map.insert(key.clone(), value.clone())),
            Write::Delete(key) => drop(map.remove(key)),
        }
    }
}
