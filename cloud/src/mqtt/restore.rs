//! What the head knew: everything it stored, read at its start.
//!
//! Out: what the core goes on from, and where the log goes on. Entries of sessions that ended are removed here if a stop
//! came before that was done. An entry that cannot be read is left out and told: it must not keep the head from starting.
//! Not here: byte forms (`stored`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use tributary_shared::{
    mqtt::PacketId,
    session::{Restored, RestoredQueue, RestoredSession, SessionId, action::Author},
};

use super::stored::{
    Unreadable, kind, queued_bytes, read_delayed, read_message, read_session, read_session_key,
    read_subscription,
};
use crate::{
    engine::{ScanLimit, ShardId, Write},
    log::{Log, LogError, Offset, PartitionId, StateSpace, Transaction},
};

/// Entries read or removed at once.
const PAGE: ScanLimit = ScanLimit { entries: 10_000, bytes: 4 * 1024 * 1024 };

/// The head's past.
pub(super) struct Past {
    /// For the core.
    pub(super) restored: Restored,
    /// Next offsets; `None`: cursors were never saved, this is the first start.
    pub(super) cursors: Option<HashMap<PartitionId, Offset>>,
}

/// Reads everything from the head's shard.
pub(super) async fn read(log: &Log, home: ShardId, seed: u64) -> Result<Past, LogError> {
    let past = Reader { log, home };
    let mut sessions = BTreeMap::new();
    past.each(StateSpace::Session, &[kind::SESSION], |key, value| {
        let (session, _) = read_session_key(key)?;
        let saved = read_session(session, value)?;
        let queue = RestoredQueue::default();
        sessions.insert(session, RestoredSession { saved, received: Vec::new(), queue });
        Ok(())
    })
    .await?;
    let mut orphans = HashSet::new();
    let mut subscriptions = Vec::new();
    past.each(StateSpace::Session, &[kind::SUBSCRIPTION], |key, value| {
        let saved = read_subscription(key, value)?;
        if sessions.contains_key(&saved.session) {
            subscriptions.push(saved);
        } else {
            orphans.insert(saved.session);
        }
        Ok(())
    })
    .await?;
    past.each(StateSpace::Session, &[kind::RECEIVED], |key, _| {
        let (session, rest) = read_session_key(key)?;
        let id = rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes));
        let id = id.and_then(PacketId::new).ok_or(Unreadable::Number)?;
        match sessions.get_mut(&session) {
            Some(found) => found.received.push(id),
            None => drop(orphans.insert(session)),
        }
        Ok(())
    })
    .await?;
    past.each(StateSpace::Session, &[kind::QUEUED], |key, value| {
        let (session, rest) = read_session_key(key)?;
        let seq = rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        let seq = seq.ok_or(Unreadable::Number)?;
        match sessions.get_mut(&session) {
            Some(found) => count(&mut found.queue, seq, queued_bytes(&value)?),
            None => drop(orphans.insert(session)),
        }
        Ok(())
    })
    .await?;
    for session in orphans {
        remove_session(log, home, session).await?;
    }
    let mut retained = Vec::new();
    past.each(StateSpace::Retained, &[], |_, value| {
        retained.push((Arc::new(read_message(value)?), Author::Host));
        Ok(())
    })
    .await?;
    let mut delayed = Vec::new();
    past.each(StateSpace::Session, &[kind::DELAYED], |key, value| {
        delayed.push(read_delayed(key, value)?);
        Ok(())
    })
    .await?;
    let next = log.state_get(home, StateSpace::Session, &[kind::NEXT_SESSION]).await?;
    let next_session = next.and_then(|bytes| Some(u64::from_be_bytes(*bytes.first_chunk()?)));
    let restored = Restored {
        sessions: sessions.into_values().collect(),
        subscriptions,
        retained,
        delayed,
        next_session: next_session.unwrap_or(0),
        seed,
    };
    Ok(Past { restored, cursors: past.cursors().await? })
}

fn count(queue: &mut RestoredQueue, seq: u64, bytes: u32) {
    queue.messages += 1;
    queue.bytes += u64::from(bytes);
    queue.first_seq = if queue.first_seq == 0 { seq } else { queue.first_seq.min(seq) };
    queue.last_seq = queue.last_seq.max(seq);
}

struct Reader<'a> {
    log: &'a Log,
    home: ShardId,
}

impl Reader<'_> {
    /// Hands every entry under `prefix` to `take`.
    async fn each(
        &self,
        space: StateSpace,
        prefix: &[u8],
        mut take: impl FnMut(&[u8], Bytes) -> Result<(), Unreadable>,
    ) -> Result<(), LogError> {
        let mut after: Option<Bytes> = None;
        loop {
            let after_key = after.as_deref();
            let page = self.log.state_scan(self.home, space, prefix, after_key, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            for (key, value) in page {
                if let Err(error) = take(&key, value) {
                    tracing::error!(?space, ?key, %error, "a stored entry is left out");
                }
            }
        }
    }

    async fn cursors(&self) -> Result<Option<HashMap<PartitionId, Offset>>, LogError> {
        let saved = self.log.state_get(self.home, StateSpace::Session, &[kind::CURSORS_SAVED]);
        if saved.await?.is_none() {
            return Ok(None);
        }
        let mut cursors = HashMap::new();
        self.each(StateSpace::Session, &[kind::CURSOR], |key, value| {
            let (partition, _) = read_session_key(key)?;
            let offset = value.first_chunk().map(|bytes| i64::from_be_bytes(*bytes));
            cursors.insert(PartitionId(partition.0), offset.ok_or(Unreadable::Number)?);
            Ok(())
        })
        .await?;
        // A stream that this node has not heard of yet keeps its place.
        cursors.retain(|partition, _| !self.log.is_deleted(partition.stream()));
        Ok(Some(cursors))
    }
}

/// Removes what a session that ended left behind. Done in pages; a stop in between loses nothing but time.
pub(super) async fn remove_session(
    log: &Log,
    home: ShardId,
    session: SessionId,
) -> Result<(), LogError> {
    for kind in [kind::SUBSCRIPTION, kind::RECEIVED, kind::QUEUED, kind::INFLIGHT] {
        let prefix = super::stored::session_key(kind, session, &[]);
        loop {
            let page = log.state_scan(home, StateSpace::Session, &prefix, None, PAGE).await?;
            if page.is_empty() {
                break;
            }
            let delete =
                |(key, _): (Bytes, Bytes)| Write::Delete(Log::state_key(StateSpace::Session, &key));
            let writes = page.into_iter().map(delete).collect();
            log.commit(home, Transaction { writes, ..Transaction::default() }).await?;
        }
    }
    Ok(())
}
