//! Byte forms and keys of what the head stores. Pure.
//!
//! ```text
//! space Session   s session                 -> session          n              -> next session number
//!                 u session filter          -> subscription     m              -> "cursors were saved once"
//!                 r session packet id       -> (nothing)        c partition    -> next offset to read
//!                 q session seq             -> queue entry: where its record is, or a body of its own
//!                 i session seq             -> packet id and state of an entry that was sent later than queued
//! space Retained  topic                     -> message, as a record batch of one
//! ```
//! Numbers are big-endian. A value opens with the version of its form. Messages are stored as everywhere: as records.
//! Change here: forms, with a new version number; only what is added at a form's end keeps it: old bytes end before that and
//! are read as not having it. Not here: when what is written (`store`).

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, TryGetError};
use bytestring::ByteString;
use tributary_shared::{
    message::{Message, MessageRef},
    mqtt::{
        PacketId, Qos,
        packet::{SubscriptionOptions, Will},
        write::Encoded,
    },
    record::{
        Batch, BatchBuilder, BatchError, Compression,
        mqtt::{to_message, to_record},
    },
    session::{
        Queued, SessionId,
        action::{Author, SavedDelayed, SavedReplay, SavedSession, SavedSubscription},
    },
};

/// Version of all forms here.
const FORM: u8 = 1;
/// One message unpacks to no more: nothing larger comes through the listener.
const MESSAGE_MAX: usize = 256 * 1024 * 1024;
/// Longest topic that is its own key; a longer one is cut and hashed, the value has it whole.
const TOPIC_KEY_MAX: usize = 1_024;

/// Why stored bytes cannot be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(super) enum Unreadable {
    #[error("form {0} is not known to this version")]
    Form(u8),
    #[error("stored bytes are cut short")]
    Short(#[from] TryGetError),
    #[error("stored text is not UTF-8")]
    Text,
    #[error("stored number is out of range")]
    Number,
    #[error("stored message: {0}")]
    Message(#[from] BatchError),
}

/// Where a queue entry's message is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    /// In the log.
    Ref(MessageRef),
    /// Here.
    Own(Box<Message>),
}

/// Kinds of keys.
pub(super) mod kind {
    pub(in crate::mqtt) const SESSION: u8 = b's';
    pub(in crate::mqtt) const SUBSCRIPTION: u8 = b'u';
    pub(in crate::mqtt) const RECEIVED: u8 = b'r';
    pub(in crate::mqtt) const QUEUED: u8 = b'q';
    pub(in crate::mqtt) const INFLIGHT: u8 = b'i';
    /// Numbered like a session.
    pub(in crate::mqtt) const DELAYED: u8 = b'd';
    pub(in crate::mqtt) const CURSOR: u8 = b'c';
    pub(in crate::mqtt) const NEXT_SESSION: u8 = b'n';
    pub(in crate::mqtt) const CURSORS_SAVED: u8 = b'm';
}

/// Key of a session's thing: kind, session, `rest`.
pub(super) fn session_key(kind: u8, session: SessionId, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + rest.len());
    key.push(kind);
    key.put_u64(session.0);
    key.extend_from_slice(rest);
    key
}

/// Key of a queue entry.
pub(super) fn entry_key(kind: u8, session: SessionId, seq: u64) -> Vec<u8> {
    session_key(kind, session, &seq.to_be_bytes())
}

/// Session and the rest of a key made by [`session_key`].
pub(super) fn read_session_key(mut key: &[u8]) -> Result<(SessionId, &[u8]), Unreadable> {
    key.try_get_u8()?;
    Ok((SessionId(key.try_get_u64()?), key))
}

/// Key of a topic's retained message.
pub(super) fn retained_key(topic: &str) -> Vec<u8> {
    let bytes = topic.as_bytes();
    match bytes.get(..TOPIC_KEY_MAX) {
        None => [&[0], bytes].concat(),
        Some(start) => {
            let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            let length = bytes.len() as u64;
            [&[1], start, &hash.to_be_bytes(), &length.to_be_bytes()].concat()
        }
    }
}

/// A message as a record batch of one.
pub(super) fn write_message(message: &Message) -> Result<Bytes, Unreadable> {
    let mut builder = BatchBuilder::new();
    builder.push(&to_record(message));
    Ok(builder.finish(Compression::None, None)?.bytes().clone())
}

/// Back.
pub(super) fn read_message(bytes: Bytes) -> Result<Message, Unreadable> {
    let records = Batch::parse(bytes)?.records(MESSAGE_MAX)?;
    let record = records.first().ok_or(BatchError::Empty)?;
    Ok(to_message(record, ""))
}

/// A session.
pub(super) fn write_session(saved: &SavedSession) -> Result<Bytes, Unreadable> {
    let mut out = vec![FORM];
    put_text(&mut out, &saved.client_id);
    put_option(&mut out, saved.principal.as_ref(), |out, principal| put_text(out, principal));
    out.put_u32(saved.expiry_s);
    put_option(&mut out, saved.disconnected_ms, BufMut::put_i64);
    out.put_u64(saved.next_seq);
    out.put_u8(u8::from(saved.will.is_some()));
    if let Some(will) = &saved.will {
        out.put_u32(will.delay);
        out.extend_from_slice(&write_message(&will_as_message(will))?);
    }
    Ok(out.into())
}

/// Back.
pub(super) fn read_session(session: SessionId, bytes: Bytes) -> Result<SavedSession, Unreadable> {
    let mut bytes = versioned(bytes)?;
    let client_id = get_text(&mut bytes)?;
    let principal = get_option(&mut bytes, get_text)?;
    let expiry_s = bytes.try_get_u32()?;
    let disconnected_ms = get_option(&mut bytes, |bytes| Ok(bytes.try_get_i64()?))?;
    let next_seq = bytes.try_get_u64()?;
    let will = get_option(&mut bytes, |bytes| {
        let delay = bytes.try_get_u32()?;
        let message = read_message(std::mem::take(bytes))?;
        Ok(message_as_will(message, delay))
    })?;
    Ok(SavedSession { session, client_id, principal, expiry_s, disconnected_ms, will, next_seq })
}

fn will_as_message(will: &Will) -> Message {
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

fn message_as_will(message: Message, delay: u32) -> Will {
    let Message { topic, payload, qos, retain, properties, .. } = message;
    Will { topic, payload, qos, retain, delay, properties }
}

/// A subscription; its session and filter are in the key.
pub(super) fn write_subscription(saved: &SavedSubscription) -> Bytes {
    let options = saved.options;
    let mut out = vec![FORM];
    out.put_u8(options.qos as u8);
    out.put_u8(u8::from(options.no_local));
    out.put_u8(u8::from(options.retain_as_published));
    out.put_u8(options.retain_handling);
    put_option(&mut out, saved.subscription_id, BufMut::put_u32);
    put_option(&mut out, saved.replay.as_ref(), |out, replay| {
        out.put_i64(replay.since_ms);
        put_option(out, replay.after.as_ref(), |out, after| put_text(out, after));
    });
    out.into()
}

/// Back.
pub(super) fn read_subscription(key: &[u8], bytes: Bytes) -> Result<SavedSubscription, Unreadable> {
    let (session, filter) = read_session_key(key)?;
    let mut bytes = versioned(bytes)?;
    let options = SubscriptionOptions {
        qos: get_qos(&mut bytes)?,
        no_local: bytes.try_get_u8()? != 0,
        retain_as_published: bytes.try_get_u8()? != 0,
        retain_handling: bytes.try_get_u8()?,
    };
    let subscription_id = get_option(&mut bytes, |bytes| Ok(bytes.try_get_u32()?))?;
    // Those from before there were replays end here.
    let replay = if bytes.is_empty() {
        None
    } else {
        get_option(&mut bytes, |bytes| {
            let since_ms = bytes.try_get_i64()?;
            Ok(SavedReplay { since_ms, after: get_option(bytes, get_text)? })
        })?
    };
    let filter = std::str::from_utf8(filter).map_err(|_| Unreadable::Text)?.into();
    Ok(SavedSubscription { session, filter, options, subscription_id, replay })
}

/// A delayed message; its number is in the key.
pub(super) fn write_delayed(saved: &SavedDelayed) -> Result<Bytes, Unreadable> {
    let mut out = vec![FORM];
    out.put_i64(saved.due_ms);
    match &saved.author {
        Author::Host => out.put_u8(0),
        Author::Anonymous => out.put_u8(1),
        Author::Principal(name) => {
            out.put_u8(2);
            put_text(&mut out, name);
        }
    }
    out.extend_from_slice(&write_message(&saved.message)?);
    Ok(out.into())
}

/// Back.
pub(super) fn read_delayed(key: &[u8], bytes: Bytes) -> Result<SavedDelayed, Unreadable> {
    let (SessionId(number), _) = read_session_key(key)?;
    let mut bytes = versioned(bytes)?;
    let due_ms = bytes.try_get_i64()?;
    let author = match bytes.try_get_u8()? {
        0 => Author::Host,
        1 => Author::Anonymous,
        2 => Author::Principal(get_text(&mut bytes)?),
        _ => return Err(Unreadable::Number),
    };
    let message = Arc::new(read_message(bytes)?);
    Ok(SavedDelayed { number, due_ms, message, author })
}

/// A queue entry; its session and seq are in the key. `bytes`: what it counts for in limits.
pub(super) fn write_queued(queued: &Queued, bytes: u32, body: &Body) -> Result<Bytes, Unreadable> {
    let mut out = vec![FORM];
    out.put_u32(bytes);
    out.put_u8(queued.qos as u8);
    out.put_u8(u8::from(queued.retain));
    put_flight(&mut out, queued);
    let ids = u16::try_from(queued.subscription_ids.len()).map_err(|_| Unreadable::Number)?;
    out.put_u16(ids);
    for id in &queued.subscription_ids {
        out.put_u32(*id);
    }
    match body {
        Body::Ref(MessageRef(partition, offset)) => {
            out.put_u8(0);
            out.put_u64(*partition);
            out.put_u64(*offset);
        }
        Body::Own(message) => {
            out.put_u8(1);
            out.extend_from_slice(&write_message(message)?);
        }
    }
    Ok(out.into())
}

/// What an entry counts for, without reading all of it.
pub(super) fn queued_bytes(bytes: &Bytes) -> Result<u32, Unreadable> {
    Ok(versioned(bytes.clone())?.try_get_u32()?)
}

/// Back.
pub(super) fn read_queued(key: &[u8], bytes: Bytes) -> Result<(Queued, Body), Unreadable> {
    let (session, mut seq) = read_session_key(key)?;
    let mut bytes = versioned(bytes)?;
    bytes.try_get_u32()?;
    let mut queued = Queued {
        session,
        seq: seq.try_get_u64()?,
        qos: get_qos(&mut bytes)?,
        retain: bytes.try_get_u8()? != 0,
        subscription_ids: Vec::new(),
        packet_id: None,
        released: false,
    };
    get_flight(&mut bytes, &mut queued)?;
    for _ in 0..bytes.try_get_u16()? {
        queued.subscription_ids.push(bytes.try_get_u32()?);
    }
    let body = match bytes.try_get_u8()? {
        0 => Body::Ref(MessageRef(bytes.try_get_u64()?, bytes.try_get_u64()?)),
        _ => Body::Own(Box::new(read_message(bytes)?)),
    };
    Ok((queued, body))
}

/// Packet id and state of an entry.
pub(super) fn write_flight(queued: &Queued) -> Bytes {
    let mut out = vec![FORM];
    put_flight(&mut out, queued);
    out.into()
}

/// Back, into an entry.
pub(super) fn read_flight(bytes: Bytes, queued: &mut Queued) -> Result<(), Unreadable> {
    get_flight(&mut versioned(bytes)?, queued)
}

fn put_flight(out: &mut Vec<u8>, queued: &Queued) {
    out.put_u16(queued.packet_id.map_or(0, PacketId::get));
    out.put_u8(u8::from(queued.released));
}

fn get_flight(bytes: &mut Bytes, queued: &mut Queued) -> Result<(), Unreadable> {
    queued.packet_id = PacketId::new(bytes.try_get_u16()?);
    queued.released = bytes.try_get_u8()? != 0;
    Ok(())
}

fn versioned(mut bytes: Bytes) -> Result<Bytes, Unreadable> {
    match bytes.try_get_u8()? {
        FORM => Ok(bytes),
        other => Err(Unreadable::Form(other)),
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32(text.len() as u32);
    out.extend_from_slice(text.as_bytes());
}

fn get_text(bytes: &mut Bytes) -> Result<ByteString, Unreadable> {
    let length = bytes.try_get_u32()? as usize;
    if length > bytes.len() {
        return Err(Unreadable::Number);
    }
    ByteString::try_from(bytes.split_to(length)).map_err(|_| Unreadable::Text)
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn get_option<T>(
    bytes: &mut Bytes,
    get: impl FnOnce(&mut Bytes) -> Result<T, Unreadable>,
) -> Result<Option<T>, Unreadable> {
    if bytes.try_get_u8()? == 0 { Ok(None) } else { get(bytes).map(Some) }
}

fn get_qos(bytes: &mut Bytes) -> Result<Qos, Unreadable> {
    match bytes.try_get_u8()? {
        0 => Ok(Qos::AtMostOnce),
        1 => Ok(Qos::AtLeastOnce),
        2 => Ok(Qos::ExactlyOnce),
        _ => Err(Unreadable::Number),
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::mqtt::packet::PublishProperties;

    use super::*;

    fn message() -> Message {
        Message {
            topic: "a/b".into(),
            payload: Bytes::from_static(b"\x00\xff"),
            qos: Qos::ExactlyOnce,
            retain: true,
            properties: PublishProperties {
                message_expiry: Some(60),
                user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
                ..PublishProperties::default()
            },
            publisher: Some("dev".into()),
            received_ms: 1_700_000_000_000,
            expires_ms: Some(1_700_000_060_000),
            encoded: Encoded::default(),
            place: None,
        }
    }

    fn queued() -> Queued {
        Queued {
            session: SessionId(7),
            seq: 9,
            qos: Qos::AtLeastOnce,
            retain: true,
            subscription_ids: vec![3, 268_435_455],
            packet_id: PacketId::new(65_535),
            released: true,
        }
    }

    #[test]
    fn everything_comes_back_as_it_was_stored() {
        let will = Will {
            topic: "w".into(),
            payload: Bytes::new(),
            qos: Qos::AtMostOnce,
            retain: true,
            delay: 5,
            properties: message().properties,
        };
        for (principal, disconnected_ms, will) in
            [(None, None, None), (Some("alice".into()), Some(-1), Some(will))]
        {
            let saved = SavedSession {
                session: SessionId(u64::MAX),
                client_id: "clïent".into(),
                principal,
                expiry_s: u32::MAX,
                disconnected_ms,
                will,
                next_seq: 1 << 40,
            };
            let bytes = write_session(&saved).unwrap();
            assert_eq!(read_session(saved.session, bytes).unwrap(), saved);
        }
        let options = SubscriptionOptions {
            qos: Qos::ExactlyOnce,
            no_local: true,
            retain_as_published: false,
            retain_handling: 2,
        };
        let saved = SavedSubscription {
            session: SessionId(1),
            filter: "$share/g/+/#".into(),
            options,
            subscription_id: Some(9),
            replay: Some(SavedReplay { after: Some("a/b".into()), since_ms: 5 }),
        };
        let key = session_key(kind::SUBSCRIPTION, saved.session, saved.filter.as_bytes());
        assert_eq!(read_subscription(&key, write_subscription(&saved)).unwrap(), saved);
        for author in [Author::Host, Author::Anonymous, Author::Principal("alice".into())] {
            let message = Arc::new(message());
            let saved = SavedDelayed { number: 1 << 40, due_ms: -5, message, author };
            let key = session_key(kind::DELAYED, SessionId(saved.number), &[]);
            assert_eq!(read_delayed(&key, write_delayed(&saved).unwrap()).unwrap(), saved);
        }
        for body in [Body::Ref(MessageRef(1 << 33, 12)), Body::Own(Box::new(message()))] {
            let key = entry_key(kind::QUEUED, SessionId(7), 9);
            let bytes = write_queued(&queued(), 55, &body).unwrap();
            assert_eq!(queued_bytes(&bytes).unwrap(), 55);
            assert_eq!(read_queued(&key, bytes).unwrap(), (queued(), body));
        }
        let mut back = Queued { packet_id: None, released: false, ..queued() };
        read_flight(write_flight(&queued()), &mut back).unwrap();
        assert_eq!(back, queued());
    }

    #[test]
    fn a_subscription_stored_before_there_were_replays_is_read() {
        let key = session_key(kind::SUBSCRIPTION, SessionId(1), b"a/+");
        for (old, subscription_id) in
            [(&[1, 2, 1, 0, 2, 0][..], None), (&[1, 2, 1, 0, 2, 1, 0, 0, 0, 9][..], Some(9))]
        {
            let options = SubscriptionOptions {
                qos: Qos::ExactlyOnce,
                no_local: true,
                retain_as_published: false,
                retain_handling: 2,
            };
            let (session, filter) = (SessionId(1), "a/+".into());
            let saved =
                SavedSubscription { session, filter, options, subscription_id, replay: None };
            assert_eq!(read_subscription(&key, Bytes::from_static(old)).unwrap(), saved);
        }
        // Cut within what was there then, or within a replay.
        for cut in [&[1, 2, 1, 0, 2][..], &[1, 2, 1, 0, 2, 1, 0][..], &[1, 2, 1, 0, 2, 0, 1, 0][..]]
        {
            assert!(read_subscription(&key, Bytes::from_static(cut)).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn cut_or_unknown_bytes_are_an_error_and_nothing_else() {
        let bytes = write_queued(&queued(), 1, &Body::Ref(MessageRef(1, 2))).unwrap();
        let key = entry_key(kind::QUEUED, SessionId(7), 9);
        for length in 0..bytes.len() {
            assert!(read_queued(&key, bytes.slice(..length)).is_err(), "{length}");
        }
        assert!(matches!(
            read_session(SessionId(1), Bytes::from_static(&[9])),
            Err(Unreadable::Form(9))
        ));
    }

    #[test]
    fn long_topics_have_short_keys_of_their_own() {
        let (one, two) = ("x".repeat(60_000), format!("{}y", "x".repeat(59_999)));
        assert_ne!(retained_key(&one), retained_key(&two));
        assert!(retained_key(&one).len() < 1_100);
        assert_ne!(retained_key("a"), retained_key("b"));
    }
}
