//! Backlogs: read to their end however fat their entries, asked for again when they cannot be read, counted when made.

use bytes::Bytes;
use tributary_shared::{
    amqp::Table,
    record::{BatchBuilder, Compression, Record},
};

use super::{
    Command, QueueId,
    exchange::{Binding, Destination},
    load::{self, load},
    message::At,
    parts::{Count, Load},
    router::{Routed, RoutedRecord},
    state::State,
    store::{Change, Definition, Entry, StoredQueue, entry_key},
};
use crate::log::{Guard, PartitionId, StateSpace, StreamConfig, Transaction, testing::test_log};

const QUEUE: QueueId = QueueId(1);

/// Entries of dead-lettered messages carry properties of their own: a page of them ends at its bytes.
#[tokio::test]
async fn a_backlog_of_fat_dead_letters_is_read_to_its_end() {
    const ENTRIES: u64 = 40;
    let log = test_log(1).await.unwrap();
    let home = log.home_shard("amqp");
    let stream = log.create_stream("s", Some(1), StreamConfig::default()).await.unwrap();
    let partition = PartitionId::new(stream.id, 0);
    let mut builder = BatchBuilder::new();
    for n in 0..ENTRIES {
        let value = Some(Bytes::from(n.to_string()));
        builder.push(&Record { value, timestamp_ms: 1, ..Record::default() });
    }
    let batch = builder.finish(Compression::None, None).unwrap();
    let entry = |position: u64| {
        let at = At { partition, offset: position as i64 };
        // A table of headers with nothing but a long text would be as good; nobody decodes it here.
        let overlay = Some(("dlx".into(), "key".into(), Bytes::from(vec![0; 100_000])));
        Entry { at, expires_ms: None, size: 1, overlay }.encode()
    };
    let writes = (0..ENTRIES)
        .map(|n| load::write(Change::put(StateSpace::Queue, entry_key(QUEUE, n), entry(n))));
    let transaction = Transaction { writes: writes.collect(), ..Transaction::default() };
    log.append(partition, batch, Guard::None).await.unwrap();
    log.commit(home, transaction).await.unwrap();

    let (mut positions, mut pages, mut from) = (Vec::new(), 0, 0);
    while from < ENTRIES {
        let asked = Load { queue: QUEUE, number: 1, from, until: ENTRIES, restored: 0 };
        let loaded = load(&log, home, asked).await.unwrap();
        assert!(loaded.until > from && loaded.lost.is_empty());
        positions.extend(loaded.messages.iter().map(|ready| ready.position));
        (from, pages) = (loaded.until, pages + 1);
    }
    assert_eq!(positions, (0..ENTRIES).collect::<Vec<_>>());
    assert!(pages > 1, "the page was to end at its bytes");
}

/// A virtual host that starts with one durable queue that holds so many messages, bound to every topic.
fn restored(messages: u64) -> State {
    let mut state = State::new("/", 1);
    let queue = StoredQueue { id: QUEUE, auto_delete: false, arguments: Table::default() };
    let binding = Binding {
        destination: Destination::Queue(QUEUE),
        key: "#".into(),
        arguments: Table::default(),
    };
    let definitions = vec![
        Definition::Queue("q".into(), queue),
        Definition::Binding(super::TOPIC_EXCHANGE.into(), binding),
    ];
    let count = Count { floor: 0, next: messages, messages, bytes: messages * 10 };
    state.restore(definitions, |_| count, 1_000);
    state.deliver();
    state
}

#[test]
fn a_backlog_that_could_not_be_read_is_asked_for_again() {
    let mut state = restored(5);
    let first = std::mem::take(&mut state.loads);
    assert_eq!(first.len(), 1);
    for now_ms in [2_000, 5_000] {
        let asked = first[0];
        let load = Load { number: asked.number + u64::from(now_ms > 2_000), ..asked };
        state.load_failed(load, now_ms);
        state.deliver();
        assert!(state.loads.is_empty(), "not at once: what failed needs a moment");
        let due = state.next_deadline().expect("a time to ask again");
        assert!(due > now_ms && due <= now_ms + 1_000);
        state.tick(due);
        state.deliver();
        let again = std::mem::take(&mut state.loads);
        assert_eq!(again.len(), 1, "asked for again");
        assert_eq!((again[0].from, again[0].until), (asked.from, asked.until));
    }
}

/// What waits for the store bounds how much more is taken.
#[test]
fn messages_of_other_protocols_count_against_what_a_virtual_host_keeps() {
    let mut state = restored(0);
    let record = || RoutedRecord {
        offset: 0,
        routing_key: "a.b".to_owned(),
        record: Record { value: Some(vec![0; 10_000].into()), ..Record::default() },
    };
    let routed = Routed {
        partition: PartitionId(1),
        stream: "s".into(),
        records: vec![record(), record()],
        passed: Vec::new(),
        next: 2,
    };
    state.handle(Command::Routed(Box::new(routed)), 2_000);
    assert_eq!(state.plan.items.len(), 2);
    assert!(state.plan.bytes >= 20_000, "{}", state.plan.bytes);
}
