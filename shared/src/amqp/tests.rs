//! The codec against itself (round trips, mutations), against hostile input, and against `amq-protocol`.

use amq_protocol::frame::{WriteContext, gen_frame, parse_frame};
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use proptest::prelude::*;

use super::{frame::*, method::Method::*, table::*, wire::*, *};

fn short() -> impl Strategy<Value = ByteString> {
    "[a-z#*./é]{0,40}".prop_map(ByteString::from)
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        any::<i8>().prop_map(Value::I8),
        any::<u8>().prop_map(Value::U8),
        any::<i16>().prop_map(Value::I16),
        any::<u16>().prop_map(Value::U16),
        any::<i32>().prop_map(Value::I32),
        any::<u32>().prop_map(Value::U32),
        any::<i64>().prop_map(Value::I64),
        (-1e9f32..1e9).prop_map(Value::F32),
        (-1e9f64..1e9).prop_map(Value::F64),
        (any::<u8>(), 0..i32::MAX).prop_map(|(s, v)| Value::Decimal(s, v)),
        "[a-z]{0,20}".prop_map(Value::text),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(|v| Value::Binary(v.into())),
        any::<u64>().prop_map(Value::Timestamp),
        Just(Value::Void),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            proptest::collection::vec((short(), inner), 0..6).prop_map(|v| Value::Table(Table(v))),
        ]
    })
}

fn table() -> impl Strategy<Value = Table> {
    proptest::collection::vec((short(), value()), 0..8).prop_map(Table)
}

/// Sorted and without duplicates at every level: what the other crate can hold.
fn canonical(table: Table) -> Table {
    fn value(v: Value) -> Value {
        match v {
            Value::Table(t) => Value::Table(canonical(t)),
            Value::Array(a) => Value::Array(a.into_iter().map(value).collect()),
            other => other,
        }
    }
    let sorted: std::collections::BTreeMap<_, _> =
        table.0.into_iter().map(|(n, v)| (n, value(v))).collect();
    Table(sorted.into_iter().collect())
}

/// Every method, filled with the given values.
#[expect(clippy::many_single_char_names, reason = "they stand in fifty lines")]
fn methods(s: &ByteString, t: &Table, l: &Bytes, bits: [bool; 5], n: u64) -> Vec<Method> {
    let [a, b, c, d, e] = bits;
    let (s, t, l) = (|| s.clone(), || t.clone(), || l.clone());
    let (n16, n32) = (n as u16, n as u32);
    vec![
        ConnectionStart {
            version_major: 0,
            version_minor: 9,
            server_properties: t(),
            mechanisms: l(),
            locales: l(),
        },
        ConnectionStartOk { client_properties: t(), mechanism: s(), response: l(), locale: s() },
        ConnectionSecure { challenge: l() },
        ConnectionSecureOk { response: l() },
        ConnectionTune { channel_max: n16, frame_max: n32, heartbeat: n16 },
        ConnectionTuneOk { channel_max: n16, frame_max: n32, heartbeat: n16 },
        ConnectionOpen { virtual_host: s(), capabilities: "".into(), insist: false },
        ConnectionOpenOk { known_hosts: "".into() },
        ConnectionClose { reply_code: n16, reply_text: s(), class_id: n16, method_id: 1 },
        ConnectionCloseOk {},
        ConnectionBlocked { reason: s() },
        ConnectionUnblocked {},
        ConnectionUpdateSecret { new_secret: l(), reason: s() },
        ConnectionUpdateSecretOk {},
        ChannelOpen { out_of_band: "".into() },
        ChannelOpenOk { channel_id: Bytes::new() },
        ChannelFlow { active: a },
        ChannelFlowOk { active: a },
        ChannelClose { reply_code: n16, reply_text: s(), class_id: n16, method_id: 2 },
        ChannelCloseOk {},
        ExchangeDeclare {
            ticket: 0,
            exchange: s(),
            kind: s(),
            passive: a,
            durable: b,
            auto_delete: c,
            internal: d,
            nowait: e,
            arguments: t(),
        },
        ExchangeDeclareOk {},
        ExchangeDelete { ticket: 0, exchange: s(), if_unused: a, nowait: b },
        ExchangeDeleteOk {},
        ExchangeBind {
            ticket: 0,
            destination: s(),
            source: s(),
            routing_key: s(),
            nowait: a,
            arguments: t(),
        },
        ExchangeBindOk {},
        ExchangeUnbind {
            ticket: 0,
            destination: s(),
            source: s(),
            routing_key: s(),
            nowait: a,
            arguments: t(),
        },
        ExchangeUnbindOk {},
        QueueDeclare {
            ticket: 0,
            queue: s(),
            passive: a,
            durable: b,
            exclusive: c,
            auto_delete: d,
            nowait: e,
            arguments: t(),
        },
        QueueDeclareOk { queue: s(), message_count: n32, consumer_count: 3 },
        QueueBind {
            ticket: 0,
            queue: s(),
            exchange: s(),
            routing_key: s(),
            nowait: a,
            arguments: t(),
        },
        QueueBindOk {},
        QueuePurge { ticket: 0, queue: s(), nowait: a },
        QueuePurgeOk { message_count: n32 },
        QueueDelete { ticket: 0, queue: s(), if_unused: a, if_empty: b, nowait: c },
        QueueDeleteOk { message_count: n32 },
        QueueUnbind { ticket: 0, queue: s(), exchange: s(), routing_key: s(), arguments: t() },
        QueueUnbindOk {},
        BasicQos { prefetch_size: 0, prefetch_count: n16, global: a },
        BasicQosOk {},
        BasicConsume {
            ticket: 0,
            queue: s(),
            consumer_tag: s(),
            no_local: a,
            no_ack: b,
            exclusive: c,
            nowait: d,
            arguments: t(),
        },
        BasicConsumeOk { consumer_tag: s() },
        BasicCancel { consumer_tag: s(), nowait: a },
        BasicCancelOk { consumer_tag: s() },
        BasicPublish { ticket: 0, exchange: s(), routing_key: s(), mandatory: a, immediate: b },
        BasicReturn { reply_code: n16, reply_text: s(), exchange: s(), routing_key: s() },
        BasicDeliver {
            consumer_tag: s(),
            delivery_tag: n,
            redelivered: a,
            exchange: s(),
            routing_key: s(),
        },
        BasicGet { ticket: 0, queue: s(), no_ack: a },
        BasicGetOk {
            delivery_tag: n,
            redelivered: a,
            exchange: s(),
            routing_key: s(),
            message_count: n32,
        },
        BasicGetEmpty { cluster_id: "".into() },
        BasicAck { delivery_tag: n, multiple: a },
        BasicReject { delivery_tag: n, requeue: a },
        BasicRecoverAsync { requeue: a },
        BasicRecover { requeue: a },
        BasicRecoverOk {},
        BasicNack { delivery_tag: n, multiple: a, requeue: b },
        ConfirmSelect { nowait: a },
        ConfirmSelectOk {},
        TxSelect {},
        TxSelectOk {},
        TxCommit {},
        TxCommitOk {},
        TxRollback {},
        TxRollbackOk {},
    ]
}

fn one(bytes: &[u8]) -> Result<Option<Frame>, Refusal> {
    Decoder { frame_max: 131_072 }.next(&mut BytesMut::from(bytes))
}

/// Read and written again by the other crate.
fn theirs(bytes: &[u8]) -> Option<Vec<u8>> {
    let (rest, frame) = parse_frame(bytes).ok()?;
    assert!(rest.is_empty());
    let mut out = vec![0; 2 * bytes.len() + 64];
    let written =
        gen_frame(&frame)(WriteContext::from(std::io::Cursor::new(&mut out[..]))).unwrap();
    let length = written.into_inner().1 as usize;
    out.truncate(length);
    Some(out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_method_comes_back_as_it_was(s in short(), t in table(), l: Vec<u8>, bits: [bool; 5], n: u64) {
        for method in methods(&s, &t, &Bytes::from(l.clone()), bits, n) {
            let mut out = Vec::new();
            write_method(&mut out, 7, &method);
            let frame = one(&out).unwrap().unwrap();
            prop_assert_eq!((frame.kind, frame.channel), (FrameKind::Method, 7));
            prop_assert_eq!(Method::decode(frame.payload).unwrap(), method);
        }
    }

    #[test]
    fn every_method_reads_the_same_with_another_codec(s in short(), t in table(), l in "[a-z]{0,9}", bits: [bool; 5], n: u64) {
        for method in methods(&s, &canonical(t.clone()), &Bytes::from(l.clone()), bits, n) {
            let mut out = Vec::new();
            write_method(&mut out, 7, &method);
            let other = theirs(&out);
            prop_assert!(other.is_some(), "{:?} is not readable", method);
            prop_assert_eq!(other.unwrap(), out, "{:?}", method);
        }
    }

    #[test]
    fn properties_come_back_and_read_the_same_with_another_codec(t in table(), s in short(), flags: u16, n: u64) {
        let text = |bit: u16| (flags & 1 << bit != 0).then(|| s.clone().into_bytes());
        let properties = Properties {
            content_type: text(15), content_encoding: text(14),
            headers: (flags & 1 << 13 != 0).then(|| canonical(t.clone())),
            delivery_mode: (flags & 1 << 12 != 0).then_some(2), priority: (flags & 1 << 11 != 0).then_some(n as u8),
            correlation_id: text(10), reply_to: text(9), expiration: text(8), message_id: text(7),
            timestamp: (flags & 1 << 6 != 0).then_some(n), kind: text(5), user_id: text(4), app_id: text(3), cluster_id: text(2),
        };
        let mut raw = Vec::new();
        properties.encode(&mut raw);
        prop_assert_eq!(&Properties::decode(raw.clone().into()).unwrap(), &properties);
        let mut out = Vec::new();
        write_content(&mut out, 1, &raw, b"", 4096);
        let header = ContentHeader::decode(one(&out).unwrap().unwrap().payload).unwrap();
        prop_assert_eq!((header.class, header.body_size, &header.properties[..]), (60, 0, &raw[..]));
        prop_assert_eq!(theirs(&out).unwrap(), out);
    }

    #[test]
    fn a_body_is_cut_at_frame_max_and_comes_back(body: Vec<u8>, big in 0usize..20_000) {
        let mut body = body;
        body.resize(body.len() + big, 7);
        let mut out = Vec::new();
        write_content(&mut out, 3, &[0, 0], &body, 4096);
        let mut buffer = BytesMut::from(&out[..]);
        let mut got = Vec::new();
        while let Some(frame) = (Decoder { frame_max: 4096 }).next(&mut buffer).unwrap() {
            if frame.kind == FrameKind::Body { got.extend_from_slice(&frame.payload) }
        }
        prop_assert!(buffer.is_empty());
        prop_assert_eq!(got, body);
    }

    #[test]
    fn damaged_bytes_never_panic(s in short(), t in table(), at: prop::sample::Index, to: u8, cut: prop::sample::Index, noise: Vec<u8>) {
        let _ = one(&noise);
        let _ = Method::decode(noise.clone().into());
        let _ = ContentHeader::decode(noise.clone().into());
        let _ = Properties::decode(noise.clone().into());
        let _ = Table::decode(&mut Reader::new(noise.into()));
        for method in methods(&s, &t, &Bytes::new(), [true; 5], 5) {
            let mut out = Vec::new();
            write_method(&mut out, 7, &method);
            let i = at.index(out.len());
            out[i] = to;
            out.truncate(cut.index(out.len()) + 1);
            if let Ok(Some(frame)) = one(&out) { let _ = Method::decode(frame.payload); }
            if out.len() > 7 { let _ = Method::decode(Bytes::from(out).slice(7..)); }
        }
    }
}

/// `levels` arrays inside each other in one table.
fn nested(levels: usize) -> Vec<u8> {
    let mut value = Value::Void;
    for _ in 0..levels {
        value = Value::Array(vec![value]);
    }
    let mut out = Vec::new();
    Table::default().with("a", value).encode(&mut out);
    out
}

#[test]
fn two_thousand_nested_arrays_before_login_are_refused() {
    // Written by hand: length of each level around the one before.
    let mut inner: Vec<u8> = Vec::new();
    for _ in 0..1500 {
        let mut outer = vec![b'A'];
        outer.extend_from_slice(&(inner.len() as u32).to_be_bytes());
        outer.extend_from_slice(&inner);
        inner = outer;
    }
    let mut payload = vec![0, 10, 0, 11];
    payload.extend_from_slice(&(inner.len() as u32 + 2).to_be_bytes());
    payload.extend_from_slice(&[1, b'a']);
    payload.extend_from_slice(&inner);
    let (why, culprit) = Method::decode(payload.into()).unwrap_err();
    assert_eq!((why, culprit), (Malformed::TableDepth, (10, 11)));
    assert_eq!(why.refusal().code, Code::SyntaxError);
}

#[test]
fn tables_nest_sixteen_deep_and_no_deeper() {
    assert!(Table::decode(&mut Reader::new(nested(15).into())).is_ok());
    assert_eq!(Table::decode(&mut Reader::new(nested(16).into())), Err(Malformed::TableDepth));
}

#[test]
fn a_table_holds_1024_entries_and_no_more() {
    for (entries, ok) in [(1024, true), (1025, false)] {
        let mut out = Vec::new();
        Table(vec![("a".into(), Value::Void); entries]).encode(&mut out);
        assert_eq!(Table::decode(&mut Reader::new(out.into())).is_ok(), ok, "{entries}");
    }
}

#[test]
fn a_frame_that_says_it_is_huge_is_refused_before_it_is_kept() {
    let error = one(&[1, 0, 1, 255, 255, 255, 255]).unwrap_err();
    assert_eq!(error.code, Code::FrameError);
    assert!(error.text().contains("{frame_too_large,4294967295,131064}"), "{error}");
    let mut buffer = BytesMut::from(&[1u8, 0, 0, 0, 0, 0x20, 0][..]);
    assert!(Decoder { frame_max: PRE_AUTH_FRAME_MAX }.next(&mut buffer).is_err());
    assert_eq!(one(&[1, 0, 1, 0, 0, 0]), Ok(None));
}

#[test]
fn a_wrong_end_and_an_unknown_type_are_frame_errors() {
    assert!(
        one(&[8, 0, 0, 0, 0, 0, 0, 0xCD]).unwrap_err().text().contains("invalid_frame_end_marker")
    );
    assert_eq!(one(&[9, 0, 0, 0, 0, 0, 0, 0xCE]).unwrap_err().code, Code::FrameError);
}

#[test]
fn each_fault_has_its_code() {
    for (payload, code) in [
        (&[0u8, 99, 0, 1][..], Code::CommandInvalid),
        (&[0, 60, 0, 99], Code::CommandInvalid),
        (&[0, 60], Code::FrameError),
        (&[0, 90, 0, 10, 0], Code::FrameError),
        (&[0, 10, 0, 11, 0, 0, 0, 3, 1, b'a', b'?'], Code::SyntaxError),
        (&[0, 10, 0, 11, 0, 0, 0, 9, 1, b'a', b'V'], Code::FrameError),
        (&[0, 60, 0, 30, 1, 0xff, 0], Code::SyntaxError),
    ] {
        let (why, _) = Method::decode(Bytes::copy_from_slice(payload)).unwrap_err();
        assert_eq!(why.refusal().code, code, "{payload:?}: {why}");
    }
    assert_eq!(
        Properties::decode(Bytes::from_static(&[0, 1, 0, 0])),
        Err(Malformed::PropertyFlags)
    );
}

#[test]
fn duplicates_and_order_of_a_table_are_kept() {
    let table =
        Table::default().with("b", Value::I32(1)).with("a", Value::Void).with("b", Value::I32(2));
    let mut out = Vec::new();
    table.encode(&mut out);
    assert_eq!(Table::decode(&mut Reader::new(out.into())).unwrap(), table);
    assert_eq!(table.get("b"), Some(&Value::I32(1)));
}

#[test]
fn a_deliver_is_written_as_the_method_would_be() {
    let (mut quick, mut plain) = (Vec::new(), Vec::new());
    write_deliver(&mut quick, 9, ("ctag", 77, true), ("amq.topic", "a.b"));
    let method = Method::BasicDeliver {
        consumer_tag: "ctag".into(),
        delivery_tag: 77,
        redelivered: true,
        exchange: "amq.topic".into(),
        routing_key: "a.b".into(),
    };
    write_method(&mut plain, 9, &method);
    assert_eq!(quick, plain);
}
