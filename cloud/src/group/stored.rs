//! What is remembered of a group, so that its members do not notice a restart: its form, and from and to [`State`].
//!
//! ```text
//! space Group: group -> 1 u8 | has members u8 | empty since, ms i64 | generation i32 | protocol type | protocol | leader
//!                       | members u32, each: id | has instance id u8, instance id | client id | client host
//!                         | session timeout u64 | rebalance timeout u64 | assignment | protocols u32, each: name | metadata
//! ```
//! Texts and bytes: length u32 | bytes. Written when the leader has shared out, before anybody is told, and when a group
//! becomes empty or is no longer. Members are there only if they were in a stable generation.
//! Not here: offsets (`offsets`), when to write (`task`).

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::state::{Limits, Member, Millis, Phase, State};
use crate::{
    engine::{ScanLimit, ShardId, Write},
    log::{Log, LogError, StateSpace},
};

const FORM: u8 = 1;

/// Larger ones are written without members, bytes: these then join again after a restart.
const STORED_MAX: usize = 8 << 20;

/// Entries read at once.
const PAGE: ScanLimit = ScanLimit { entries: 1_000, bytes: 1 << 20 };

/// What offsets' expiry and operators want to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GroupRecord {
    pub(super) protocol_type: String,
    /// Since when it has no members, ms since 1970; `None`: it had some when this was written.
    pub(super) empty_since_ms: Option<i64>,
}

/// A group as remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) record: GroupRecord,
    pub(super) generation: i32,
    pub(super) protocol: String,
    pub(super) leader: String,
    /// Of the stable generation, by id; empty if there was none.
    pub(super) members: Vec<StoredMember>,
}

/// A member as remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StoredMember {
    id: String,
    instance_id: Option<String>,
    client_id: String,
    client_host: String,
    session_timeout_ms: u64,
    rebalance_timeout_ms: u64,
    assignment: Bytes,
    protocols: Vec<(String, Bytes)>,
}

impl State {
    /// What to remember, as it is now.
    pub(super) fn to_stored(&self, empty_since_ms: Option<i64>) -> Stored {
        let stable = self.phase == Phase::Stable;
        let members = self.members.iter().filter(|_| stable).map(|(id, member)| StoredMember {
            id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            session_timeout_ms: member.session_timeout_ms,
            rebalance_timeout_ms: member.rebalance_timeout_ms,
            assignment: member.assignment.clone(),
            protocols: member.protocols.clone(),
        });
        let protocol_type = self.protocol_type.clone();
        Stored {
            record: GroupRecord { protocol_type, empty_since_ms },
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: members.collect(),
        }
    }

    /// The group goes on where it was; every member has a whole session to be heard again.
    pub(super) fn from_stored(limits: Limits, now: Millis, stored: Stored) -> Self {
        let mut state = Self::new(limits);
        state.generation = stored.generation;
        state.protocol_type = stored.record.protocol_type;
        if stored.members.is_empty() {
            return state;
        }
        state.phase = Phase::Stable;
        state.protocol = stored.protocol;
        state.leader = stored.leader;
        let statics =
            |member: &StoredMember| Some((member.instance_id.clone()?, member.id.clone()));
        state.statics = stored.members.iter().filter_map(statics).collect::<HashMap<_, _>>();
        for stored in stored.members {
            let mut member = Member {
                instance_id: stored.instance_id,
                client_id: stored.client_id,
                client_host: stored.client_host,
                session_timeout_ms: stored.session_timeout_ms,
                rebalance_timeout_ms: stored.rebalance_timeout_ms,
                protocols: stored.protocols,
                assignment: stored.assignment,
                joining: None,
                syncing: None,
                expires: 0,
            };
            member.touch(now);
            state.members.insert(stored.id, member);
        }
        state
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

fn get_bytes(value: &mut Bytes) -> Option<Bytes> {
    let length = value.try_get_u32().ok()? as usize;
    (value.len() >= length).then(|| value.split_to(length))
}

fn get_text(value: &mut Bytes) -> Option<String> {
    String::from_utf8(get_bytes(value)?.into()).ok()
}

fn encode(stored: &Stored) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(FORM);
    out.put_u8(u8::from(stored.record.empty_since_ms.is_none()));
    out.put_i64(stored.record.empty_since_ms.unwrap_or(0));
    out.put_i32(stored.generation);
    for text in [&stored.record.protocol_type, &stored.protocol, &stored.leader] {
        put_bytes(&mut out, text.as_bytes());
    }
    out.put_u32(stored.members.len() as u32);
    for member in &stored.members {
        encode_member(&mut out, member);
    }
    out.freeze()
}

fn encode_member(out: &mut BytesMut, member: &StoredMember) {
    put_bytes(out, member.id.as_bytes());
    out.put_u8(u8::from(member.instance_id.is_some()));
    if let Some(instance) = &member.instance_id {
        put_bytes(out, instance.as_bytes());
    }
    put_bytes(out, member.client_id.as_bytes());
    put_bytes(out, member.client_host.as_bytes());
    out.put_u64(member.session_timeout_ms);
    out.put_u64(member.rebalance_timeout_ms);
    put_bytes(out, &member.assignment);
    out.put_u32(member.protocols.len() as u32);
    for (name, metadata) in &member.protocols {
        put_bytes(out, name.as_bytes());
        put_bytes(out, metadata);
    }
}

/// `None`: not of a form that is known here.
fn decode(mut value: Bytes) -> Option<Stored> {
    if value.try_get_u8().ok()? != FORM {
        return None;
    }
    let has_members = value.try_get_u8().ok()? != 0;
    let since = value.try_get_i64().ok()?;
    let generation = value.try_get_i32().ok()?;
    let protocol_type = get_text(&mut value)?;
    let protocol = get_text(&mut value)?;
    let leader = get_text(&mut value)?;
    let mut members = Vec::new();
    for _ in 0..value.try_get_u32().ok()? {
        members.push(decode_member(&mut value)?);
    }
    let record = GroupRecord { protocol_type, empty_since_ms: (!has_members).then_some(since) };
    value.is_empty().then_some(Stored { record, generation, protocol, leader, members })
}

fn decode_member(value: &mut Bytes) -> Option<StoredMember> {
    let id = get_text(value)?;
    let instance_id = match value.try_get_u8().ok()? {
        0 => None,
        _ => Some(get_text(value)?),
    };
    let mut member = StoredMember {
        id,
        instance_id,
        client_id: get_text(value)?,
        client_host: get_text(value)?,
        session_timeout_ms: value.try_get_u64().ok()?,
        rebalance_timeout_ms: value.try_get_u64().ok()?,
        assignment: get_bytes(value)?,
        protocols: Vec::new(),
    };
    for _ in 0..value.try_get_u32().ok()? {
        member.protocols.push((get_text(value)?, get_bytes(value)?));
    }
    Some(member)
}

/// A group that cannot be read is one whose members are not known.
fn read(group: &str, value: &[u8]) -> Stored {
    // Copied: members would keep a whole block of the engine in memory.
    decode(Bytes::copy_from_slice(value)).unwrap_or_else(|| {
        tracing::warn!(group, "stored group is of an unknown form: its members join again");
        Stored::default()
    })
}

pub(super) fn put(group: &str, stored: &Stored) -> Write {
    let mut value = encode(stored);
    if value.len() > STORED_MAX {
        let size = value.len();
        tracing::warn!(group, size, "group is too large to be stored: a restart makes it rejoin");
        value = encode(&Stored { members: Vec::new(), ..stored.clone() });
    }
    Write::Put(Log::state_key(StateSpace::Group, group.as_bytes()), value)
}

pub(super) fn delete(group: &str) -> Write {
    Write::Delete(Log::state_key(StateSpace::Group, group.as_bytes()))
}

pub(super) async fn get(log: &Log, group: &str) -> Result<Option<Stored>, LogError> {
    let value = log.state_get(log.home_shard(group), StateSpace::Group, group.as_bytes()).await?;
    Ok(value.map(|value| read(group, &value)))
}

/// Every group that is remembered, of all shards that are here.
pub(super) async fn records(log: &Log) -> Result<Vec<(String, GroupRecord)>, LogError> {
    let mut found = Vec::new();
    for shard in (0..log.shards()).map(ShardId).filter(|shard| log.is_here(*shard)) {
        match records_of(log, shard, &mut found).await {
            // It left meanwhile, and its groups with it.
            Ok(()) | Err(LogError::NotOwner) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn records_of(
    log: &Log,
    shard: ShardId,
    found: &mut Vec<(String, GroupRecord)>,
) -> Result<(), LogError> {
    let mut after: Option<Bytes> = None;
    loop {
        let page = log.state_scan(shard, StateSpace::Group, &[], after.as_deref(), PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        found.extend(page.iter().map(|(key, value)| {
            let group = String::from_utf8_lossy(key).into_owned();
            let record = read(&group, value).record;
            (group, record)
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        let member = StoredMember {
            id: "a-1".into(),
            instance_id: Some("i".into()),
            client_id: "ä".into(),
            client_host: "127.0.0.1".into(),
            session_timeout_ms: 45_000,
            rebalance_timeout_ms: 300_000,
            assignment: Bytes::from_static(&[0, 1, 0xff]),
            protocols: vec![
                ("range".into(), Bytes::from_static(b"m")),
                (String::new(), Bytes::new()),
            ],
        };
        let record = GroupRecord { protocol_type: "consumer".into(), empty_since_ms: None };
        let members = vec![member, StoredMember { id: "b-2".into(), ..StoredMember::default() }];
        Stored { record, generation: 7, protocol: "range".into(), leader: "a-1".into(), members }
    }

    #[test]
    fn a_stored_group_reads_back_as_written() {
        let empty = GroupRecord { protocol_type: "connect".into(), empty_since_ms: Some(-5) };
        let empty = Stored { record: empty, generation: i32::MAX, ..Stored::default() };
        for stored in [stored(), empty, Stored::default()] {
            assert_eq!(decode(encode(&stored)), Some(stored));
        }
    }

    #[test]
    fn what_is_not_a_whole_stored_group_is_none() {
        let whole = encode(&stored());
        for length in 0..whole.len() {
            assert_eq!(decode(whole.slice(..length)), None, "{length} bytes");
        }
        let mut longer = BytesMut::from(&whole[..]);
        longer.put_u8(0);
        assert_eq!(decode(longer.freeze()), None);
        assert_eq!(decode(Bytes::from_static(b"{}")), None);
    }

    #[test]
    fn a_group_too_large_is_stored_without_its_members() {
        let mut large = stored();
        large.members[0].assignment = Bytes::from(vec![0; STORED_MAX]);
        let Write::Put(_, value) = put("g", &large) else { panic!("a put") };
        assert_eq!(decode(value), Some(Stored { members: Vec::new(), ..large }));
    }
}
