//! Random runs against crashes and failing storage: what was answered is there, once, in order; nothing is there by half.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tributary_shared::record::{BatchBuilder, Compression, Record, batch};

use super::*;
use crate::engine::memory::MemoryEngine;

const SHARDS: u16 = 2;
const BATCHES: u32 = 40;

/// xorshift64*: the same seed, the same run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// Sends batches 0, 1, 2 ... of two records each, some at a time; after an error again from the first that was not answered.
struct Client {
    id: i64,
    edge: bool,
    partition: PartitionId,
    sent: u32,
    answered: u32,
    waiting: VecDeque<(u32, Pending)>,
    failed: bool,
}

impl Client {
    fn transaction(&self, n: u32) -> Transaction {
        let sequence = (n * 2) as i32;
        let mut builder = BatchBuilder::new();
        for half in 0..2 {
            let value = Bytes::from(format!("{} {} {half}", self.id, n));
            builder.push(&Record { value: Some(value), ..Record::default() });
        }
        let producer = batch::Producer { id: self.id, epoch: 0, base_sequence: sequence };
        let batch = builder.finish(Compression::None, Some(producer)).unwrap();
        let guard = if self.edge {
            let edge = format!("edge{}", self.id).into();
            Guard::Edge {
                edge,
                epoch: self.id,
                seq: u64::from(n) * 2,
                count: 2,
                prints: [n, n].into(),
                connection: 1,
            }
        } else {
            Guard::Producer
        };
        let key = Log::state_key(StateSpace::Meta, format!("{} {n}", self.id).as_bytes());
        let index = move |offsets: &[Offset]| {
            vec![Write::Put(key, Bytes::copy_from_slice(&offsets[0].to_be_bytes()))]
        };
        Transaction {
            appends: vec![Append { partition: self.partition, batch }],
            guard,
            writes: Vec::new(),
            index: Some(Box::new(index)),
            opening: None,
        }
    }

    async fn send(&mut self, log: &Log) {
        if self.failed || self.sent == BATCHES || self.waiting.len() >= 4 {
            return;
        }
        let shard = log.shard_of(self.partition).unwrap();
        match log.submit(shard, self.transaction(self.sent)).await {
            Ok(pending) => self.waiting.push_back((self.sent, pending)),
            Err(_) => self.failed = true,
        }
        self.sent += 1;
    }

    fn take_answers(&mut self) {
        while let Some((n, pending)) = self.waiting.front_mut() {
            match pending.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return,
                Ok(Ok(_)) => {
                    assert!(!self.failed, "answered behind a failure");
                    assert_eq!(*n, self.answered, "answers out of order");
                    self.answered += 1;
                }
                Ok(Err(_)) | Err(_) => self.failed = true,
            }
            self.waiting.pop_front();
        }
        if self.failed {
            (self.sent, self.failed) = (self.answered, false);
        }
    }
}

async fn let_owners_work() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn open_log(engine: &MemoryEngine) -> Log {
    let settings = Settings { cache_bytes: 600, ..Settings::default() };
    Log::open(Arc::new(engine.clone()), settings).await.unwrap()
}

/// Everything in a partition, read in pieces: (client, batch, half) -> offset.
async fn contents(log: &Log, partition: PartitionId) -> Vec<(String, Offset)> {
    let Watermarks { start, high } = log.watermarks(partition).unwrap();
    let (mut at, mut found) = (start, Vec::new());
    while at < high {
        for batch in log.read(partition, at, 300).await.unwrap() {
            assert_eq!(batch.header().base_offset, at, "offsets have a hole");
            for record in batch.records(1 << 20).unwrap() {
                let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
                found.push((value, at));
                at += 1;
            }
        }
    }
    found
}

/// Every answered batch is there, every batch at most once and in order, and with it its key.
async fn check(log: &Log, clients: &[Client]) {
    let mut offsets = HashMap::new();
    let partitions: HashSet<_> = clients.iter().map(|client| client.partition).collect();
    for partition in partitions {
        for (value, offset) in contents(log, partition).await {
            assert!(offsets.insert(value.clone(), offset).is_none(), "{value} twice");
        }
    }
    for client in clients {
        let shard = log.shard_of(client.partition).unwrap();
        let mut previous = -1;
        for n in 0..BATCHES {
            let first = offsets.get(&format!("{} {n} 0", client.id));
            let key = format!("{} {n}", client.id);
            let index = log.state_get(shard, StateSpace::Meta, key.as_bytes()).await.unwrap();
            let index = index.map(|bytes| Offset::from_be_bytes(bytes[..].try_into().unwrap()));
            assert_eq!(first.copied(), index, "records and key of {key} are apart");
            assert!(n >= client.answered || first.is_some(), "{key} was answered and is gone");
            if let Some(first) = first {
                assert!(*first > previous, "{key} out of order");
                previous = *first;
            }
        }
    }
}

async fn run(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let engine = MemoryEngine::manual(SHARDS);
    let mut log = open_log(&engine).await;
    let making = tokio::spawn({
        let log = log.clone();
        async move { log.create_stream("s", Some(4), StreamConfig::default()).await }
    });
    while !making.is_finished() {
        engine.flush();
        let_owners_work().await;
    }
    let stream = making.await.unwrap().unwrap();
    let mut clients: Vec<_> = (0..6)
        .map(|id| Client {
            id,
            edge: id % 2 == 0,
            partition: PartitionId::new(stream.id, id as u32 % 4),
            sent: 0,
            answered: 0,
            waiting: VecDeque::new(),
            failed: false,
        })
        .collect();
    let mut high: HashMap<PartitionId, Offset> = HashMap::new();
    for step in 0.. {
        let calm = step > 1500;
        let shard = ShardId(random.below(usize::from(SHARDS)) as u16);
        match random.below(if calm { 70 } else { 100 }) {
            0..50 => {
                let chosen = random.below(clients.len());
                clients[chosen].send(&log).await;
            }
            50..65 => drop(engine.flush_one(shard)),
            65..90 => engine.flush(),
            90..93 => engine.fail_writes(shard, 1),
            93..95 => engine.fail_durability(shard),
            95 => {
                engine.crash();
                let_owners_work().await;
                log = open_log(&engine).await;
            }
            _ => {}
        }
        let_owners_work().await;
        for client in &mut clients {
            client.take_answers();
            let now = log.watermarks(client.partition).unwrap().high;
            let before = high.insert(client.partition, now).unwrap_or(0);
            assert!(now >= before, "the high watermark fell");
        }
        if clients.iter().all(|client| client.answered == BATCHES) {
            break;
        }
        assert!(step < 20_000, "seed {seed} does not end");
        if step % 400 == 399 {
            engine.crash();
            let_owners_work().await;
            log = open_log(&engine).await;
            check(&log, &clients).await;
        }
    }
    check(&log, &clients).await;
    engine.crash();
    check(&open_log(&engine).await, &clients).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_answered_is_lost_or_doubled_through_crashes() {
    for seed in 1..=24 {
        run(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_get_contiguous_offsets_and_followers_see_them_all() {
    let engine = MemoryEngine::new(2);
    let log = open_log(&engine).await;
    let stream = log.create_stream("s", Some(3), StreamConfig::default()).await.unwrap();
    let mut follower = log.follow();
    let one = {
        let mut builder = BatchBuilder::new();
        builder.push(&Record { value: Some(Bytes::from_static(b"x")), ..Record::default() });
        builder.finish(Compression::None, None).unwrap()
    };
    let writers: Vec<_> = (0..24_u32)
        .map(|n| {
            let (log, one) = (log.clone(), one.clone());
            let partition = PartitionId::new(stream.id, n % 3);
            tokio::spawn(async move {
                let mut last = -1;
                for _ in 0..100 {
                    let answer = log.append(partition, one.clone(), Guard::None).await.unwrap();
                    assert!(answer.base_offsets[0] > last);
                    last = answer.base_offsets[0];
                    assert!(log.watermarks(partition).unwrap().high > last);
                }
            })
        })
        .collect();
    let mut seen: HashMap<PartitionId, Offset> = HashMap::new();
    while seen.values().sum::<Offset>() < 2400 {
        for partition in follower.next().await.unwrap() {
            let high = log.watermarks(partition).unwrap().high;
            assert!(seen.insert(partition, high).unwrap_or(0) <= high);
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for index in 0..3 {
        let found = contents(&log, PartitionId::new(stream.id, index)).await;
        assert_eq!(found.len(), 800);
    }
}
