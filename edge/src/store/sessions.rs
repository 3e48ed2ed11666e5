//! Rows of sessions, subscriptions, QoS 2 ids and retained messages.
//!
//! In: the core's changes. Out: the same, after a restart. Change here: what of a session survives.
//! Not here: its queue (`entries`).

use std::{collections::HashMap, sync::Arc};

use bytestring::ByteString;
use rusqlite::{Connection, Row};
use tributary_shared::{
    message::Message,
    mqtt::{
        PacketId,
        packet::{SubscriptionOptions, Will},
        write::Encoded,
    },
    session::{
        Restored, RestoredSession, SessionId,
        action::{Author, SavedDelayed, SavedReplay, SavedSession, SavedSubscription},
    },
};

use super::{Error, age::expiring, entries, group, outbound::unsigned};

/// Stores a session.
pub(super) fn save(db: &Connection, session: &SavedSession) -> Result<(), Error> {
    let will = session.will.as_ref().map(|will| group::alone(&will_message(will))).transpose()?;
    db.prepare_cached("INSERT OR REPLACE INTO session VALUES(?1,?2,?3,?4,?5,?6,?7,?8)")?.execute(
        (
            session.session.0 as i64,
            &*session.client_id,
            session.principal.as_deref(),
            session.expiry_s,
            session.disconnected_ms,
            session.will.as_ref().map(|will| will.delay),
            will.as_deref(),
            session.next_seq as i64,
        ),
    )?;
    Ok(())
}

/// Deletes a session and all it had; answers the batches its queue referred to.
pub(super) fn remove(db: &Connection, session: SessionId) -> Result<Vec<(u64, i64)>, Error> {
    let id = session.0 as i64;
    db.prepare_cached("DELETE FROM session WHERE id = ?1")?.execute([id])?;
    db.prepare_cached("DELETE FROM subscription WHERE session = ?1")?.execute([id])?;
    db.prepare_cached("DELETE FROM received WHERE session = ?1")?.execute([id])?;
    entries::remove_all(db, session)
}

/// Stores a subscription.
pub(super) fn subscribe(db: &Connection, subscription: &SavedSubscription) -> Result<(), Error> {
    let options = subscription.options;
    let bits = options.qos as u8
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | (options.retain_handling & 3) << 4;
    let replay = subscription.replay.as_ref();
    db.prepare_cached("INSERT OR REPLACE INTO subscription VALUES(?1,?2,?3,?4,?5,?6)")?.execute(
        (
            subscription.session.0 as i64,
            &*subscription.filter,
            bits,
            subscription.subscription_id,
            replay.map(|replay| replay.since_ms),
            replay.and_then(|replay| replay.after.as_deref()),
        ),
    )?;
    Ok(())
}

/// Deletes a subscription.
pub(super) fn unsubscribe(db: &Connection, session: SessionId, filter: &str) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM subscription WHERE session = ?1 AND filter = ?2")?
        .execute((session.0 as i64, filter))?;
    Ok(())
}

/// Reserves a QoS 2 id.
pub(super) fn received(db: &Connection, session: SessionId, id: PacketId) -> Result<(), Error> {
    db.prepare_cached("INSERT OR IGNORE INTO received VALUES(?1,?2)")?
        .execute((session.0 as i64, id.get()))?;
    Ok(())
}

/// Frees a QoS 2 id.
pub(super) fn released(db: &Connection, session: SessionId, id: PacketId) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM received WHERE session = ?1 AND packet_id = ?2")?
        .execute((session.0 as i64, id.get()))?;
    Ok(())
}

/// Stores the retained message of a topic.
pub(super) fn retain(
    db: &Connection,
    topic: &str,
    message: &Message,
    author: &Author,
) -> Result<(), Error> {
    let body = group::alone(message)?;
    db.prepare_cached(
        "INSERT OR REPLACE INTO retained(topic, body, author, expires_ms) VALUES(?1,?2,?3,?4)",
    )?
    .execute((topic, &body[..], author_column(author), message.expires_ms))?;
    Ok(())
}

fn author_column(author: &Author) -> Option<&str> {
    match author {
        Author::Host => None,
        Author::Anonymous => Some(""), // No name is empty.
        Author::Principal(name) => Some(name),
    }
}

fn author_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Author> {
    Ok(match row.get::<_, Option<String>>(column)? {
        None => Author::Host,
        Some(name) if name.is_empty() => Author::Anonymous,
        Some(name) => Author::Principal(name.into()),
    })
}

/// Stores a message that is published later.
pub(super) fn delay(db: &Connection, saved: &SavedDelayed) -> Result<(), Error> {
    let body = group::alone(&saved.message)?;
    db.prepare_cached("INSERT OR REPLACE INTO delayed VALUES(?1,?2,?3,?4,?5)")?.execute((
        saved.number as i64,
        saved.due_ms,
        author_column(&saved.author),
        &body[..],
        saved.message.expires_ms,
    ))?;
    Ok(())
}

/// Deletes a delayed message.
pub(super) fn delay_done(db: &Connection, number: u64) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM delayed WHERE number = ?1")?.execute([number as i64])?;
    Ok(())
}

/// Deletes the retained message of a topic.
pub(super) fn forget(db: &Connection, topic: &str) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM retained WHERE topic = ?1")?.execute([topic])?;
    Ok(())
}

/// Everything, for a start. A retained message or will whose bytes are damaged is left out and logged.
pub(super) fn load(db: &Connection, seed: u64, now_ms: u64) -> Result<Restored, Error> {
    let mut received: HashMap<SessionId, Vec<PacketId>> = HashMap::new();
    for (session, id) in load_received(db)? {
        received.entry(session).or_default().push(id);
    }
    let mut queues = entries::spans(db)?;
    let sessions = load_sessions(db)?.into_iter().map(|saved| RestoredSession {
        received: received.remove(&saved.session).unwrap_or_default(),
        queue: queues.remove(&saved.session).unwrap_or_default(),
        saved,
    });
    Ok(Restored {
        sessions: sessions.collect(),
        subscriptions: load_subscriptions(db)?,
        retained: load_retained(db, now_ms)?,
        delayed: load_delayed(db, now_ms)?,
        next_session: 0,
        seed,
    })
}

fn load_sessions(db: &Connection) -> Result<Vec<SavedSession>, Error> {
    let mut found = db.prepare(
        "SELECT id, client_id, principal, expiry_s, disconnected_ms, will_delay_s, will, next_seq
         FROM session ORDER BY id",
    )?;
    let rows = found.query_map([], |row| {
        let will: Option<Vec<u8>> = row.get(6)?;
        let delay: Option<u32> = row.get(5)?;
        Ok(SavedSession {
            session: SessionId(unsigned(row, 0)?),
            client_id: row.get::<_, String>(1)?.into(),
            principal: row.get::<_, Option<String>>(2)?.map(ByteString::from),
            expiry_s: row.get(3)?,
            disconnected_ms: row.get(4)?,
            will: will.and_then(|body| readable("will", body)).map(|message| Will {
                topic: message.topic,
                payload: message.payload,
                qos: message.qos,
                retain: message.retain,
                delay: delay.unwrap_or(0),
                properties: message.properties,
            }),
            next_seq: unsigned(row, 7)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn load_subscriptions(db: &Connection) -> Result<Vec<SavedSubscription>, Error> {
    let mut found = db.prepare(
        "SELECT session, filter, options, subscription_id, replay_since_ms, replay_after
         FROM subscription",
    )?;
    let rows = found.query_map([], |row| {
        let bits: u8 = row.get(2)?;
        Ok(SavedSubscription {
            session: SessionId(unsigned(row, 0)?),
            filter: row.get::<_, String>(1)?.into(),
            options: SubscriptionOptions {
                qos: entries::qos(bits),
                no_local: bits & 4 != 0,
                retain_as_published: bits & 8 != 0,
                retain_handling: bits >> 4 & 3,
            },
            subscription_id: row.get(3)?,
            replay: match row.get(4)? {
                Some(since_ms) => {
                    let after = row.get::<_, Option<String>>(5)?.map(ByteString::from);
                    Some(SavedReplay { after, since_ms })
                }
                None => None,
            },
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn load_received(db: &Connection) -> Result<Vec<(SessionId, PacketId)>, Error> {
    let mut found = db.prepare("SELECT session, packet_id FROM received")?;
    let rows =
        found.query_map([], |row| Ok((SessionId(unsigned(row, 0)?), row.get::<_, u16>(1)?)))?;
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    Ok(rows.into_iter().filter_map(|(s, id)| Some((s, PacketId::new(id)?))).collect())
}

fn load_retained(db: &Connection, now_ms: u64) -> Result<Vec<(Arc<Message>, Author)>, Error> {
    let mut found = db.prepare("SELECT body, author, expires_ms FROM retained")?;
    let rows = found
        .query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, author_of(row, 1)?, row.get(2)?)))?;
    let mut out = Vec::new();
    for row in rows {
        let (body, author, expires_ms) = row?;
        let message = readable("retained message", body);
        out.extend(
            message.map(|message| (Arc::new(expiring(message, expires_ms, now_ms)), author)),
        );
    }
    Ok(out)
}

fn load_delayed(db: &Connection, now_ms: u64) -> Result<Vec<SavedDelayed>, Error> {
    let mut found = db.prepare("SELECT number, due_ms, author, body, expires_ms FROM delayed")?;
    let rows = found.query_map([], |row| {
        let due_ms: i64 = row.get(1)?;
        let due_ms = if due_ms < 0 { now_ms as i64 - due_ms - 1 } else { due_ms };
        let body: Vec<u8> = row.get(3)?;
        Ok((unsigned(row, 0)?, due_ms, author_of(row, 2)?, body, row.get(4)?))
    })?;
    let mut out = Vec::new();
    for row in rows {
        let (number, due_ms, author, body, expires_ms) = row?;
        out.extend(readable("delayed message", body).map(|message| SavedDelayed {
            number,
            due_ms,
            message: Arc::new(expiring(message, expires_ms, now_ms)),
            author,
        }));
    }
    Ok(out)
}

fn readable(what: &'static str, body: Vec<u8>) -> Option<Message> {
    group::read_alone(body)
        .inspect_err(|why| tracing::error!(what, %why, "stored bytes are damaged, left out"))
        .ok()
}

fn will_message(will: &Will) -> Message {
    Message {
        topic: will.topic.clone(),
        payload: will.payload.clone(),
        qos: will.qos,
        retain: will.retain,
        properties: will.properties.clone(),
        publisher: None,
        received_ms: 0,
        expires_ms: None,
        encoded: Encoded::default(),
        place: None,
    }
}
