//! What is decided when, with time in the test's hand.

use std::time::Instant;

use tributary_shared::record::{Batch, BatchBuilder, Compression, Record, batch::Producer};

use super::*;
use crate::{
    link::{Answer, Upload, Welcome},
    store::OutboundRow,
    uplink::sending::{Sending, Step, Waiting},
};

const MS: Duration = Duration::from_millis(1);

/// Row number `id` of epoch 7, with one message of so many bytes.
fn row(id: u64, bytes: usize) -> OutboundRow {
    let mut builder = BatchBuilder::new();
    builder.push(&Record { value: Some(noise(id as usize, bytes).into()), ..Record::default() });
    let producer = Producer { id: 7, epoch: 0, base_sequence: id as i32 - 1 };
    let body: Batch = builder.finish(Compression::None, Some(producer)).unwrap();
    let body = Some(body.bytes().clone());
    OutboundRow { id, epoch: 7, s: id - 1, n: 1, reason: None, body }
}

/// A lane with rows of so many bytes from number 1 on, up to `rows`.
struct Lane {
    sending: Sending,
    rows: u64,
    bytes: usize,
    sent: Vec<(Instant, Upload)>,
}

impl Lane {
    fn new(settings: &Settings, share: &Share, rows: u64, bytes: usize) -> Self {
        let lane = lane::Settings::default();
        let sending = Sending::new(settings.clone(), &lane, 0, share.lane());
        Self { sending, rows, bytes, sent: Vec::new() }
    }

    fn connect(&mut self, receive_maximum: usize, now: Instant) {
        let welcome = Welcome { receive_maximum, packet_bytes: 1 << 20, ..Welcome::default() };
        self.sending.connected(welcome, Waiting::default(), now);
    }

    /// Does what is to be done; gives until when it waits, or why the connection is over.
    fn go(&mut self, now: Instant) -> Result<Option<Instant>, String> {
        loop {
            match self.sending.next(now, self.rows) {
                Step::Send(upload) => self.sent.push((now, upload)),
                Step::Read(read) => {
                    let rows = (read.after + 1..=self.rows).take(read.rows);
                    let rows = rows.map(|id| row(id, self.bytes)).collect();
                    self.sending.rows(read, rows, self.rows);
                }
                Step::Tell(_) | Step::Say(_) => {}
                Step::Wait { until, .. } => return Ok(until),
                Step::End { why, .. } => return Err(why),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_line_that_swallows_everything_is_given_up_within_twice_the_time() {
    let settings = Settings { ack_timeout_ms: 30_000, ..Settings::default() };
    let start = Instant::now();
    // From the first upload on, and after some that were answered.
    for answered in [0, 50] {
        let mut lane = Lane::new(&settings, &Share::new(0), 10_000, 16_000);
        let mut now = start;
        lane.connect(16, now);
        for token in 0..answered {
            lane.go(now).unwrap();
            now += 100 * MS;
            lane.sending.answered(token, Answer::Done, now);
        }
        let silent = now;
        let why = loop {
            match lane.go(now) {
                Ok(until) => now = until.unwrap(),
                Err(why) => break why,
            }
        };
        assert!(why.contains("not confirmed in time"), "{why}");
        let took = now - silent;
        assert!(took >= 30_000 * MS && took <= 60_000 * MS, "{took:?}");
    }
}

#[test]
fn an_upload_that_is_answered_bit_by_bit_is_not_given_up() {
    let settings = Settings { ack_timeout_ms: 30_000, ..Settings::default() };
    let mut lane = Lane::new(&settings, &Share::new(0), 1, 1_000);
    let mut now = Instant::now();
    lane.connect(16, now);
    for _ in 0..100 {
        lane.go(now).unwrap();
        now += 25_000 * MS;
        lane.sending.heard(now);
    }
    lane.sending.answered(0, Answer::Done, now);
    lane.go(now).unwrap();
    assert_eq!((lane.sent.len(), lane.sending.done().messages), (1, 1));
}

#[test]
fn no_more_is_unanswered_than_the_cloud_takes() {
    let start = Instant::now();
    for most in [1, 2, 5, 16] {
        let mut lane = Lane::new(&Settings::default(), &Share::new(0), 100, 100);
        lane.connect(most, start);
        lane.go(start).unwrap();
        assert_eq!(lane.sent.len(), most);
        lane.sending.answered(0, Answer::Done, start + MS);
        lane.go(start + MS).unwrap();
        assert_eq!(lane.sent.len(), most + 1);
    }
}

#[test]
fn an_alarm_does_not_wait_behind_a_backlog_on_a_line_with_a_limit() {
    let settings = Settings { bytes_per_s: 20_000, ..Settings::default() };
    let share = Share::new(settings.bytes_per_s);
    let mut alarms = Lane::new(&settings, &share, 0, 300);
    let mut bulk = Lane::new(&settings, &share, 100_000, 3_000);
    let start = Instant::now();
    alarms.connect(64, start);
    bulk.connect(64, start);
    let (mut raised, mut done) = (Vec::new(), [0, 0]);
    for ms in 0..60_000 {
        let now = start + MS * ms;
        if ms % 5_000 == 4_321 {
            alarms.rows += 1;
            raised.push(now);
        }
        for (lane, done) in [&mut alarms, &mut bulk].into_iter().zip(&mut done) {
            // Answers come after 100 ms.
            while lane.sent.get(*done).is_some_and(|(at, _)| now >= *at + MS * 100) {
                lane.sending.answered(*done as u64, Answer::Done, now);
                *done += 1;
            }
            lane.go(now).unwrap();
        }
    }
    let waits: Vec<_> =
        raised.iter().zip(&alarms.sent).map(|(raised, (sent, _))| *sent - *raised).collect();
    assert_eq!(waits.len(), 12);
    assert!(waits.iter().all(|wait| *wait <= 250 * MS), "{waits:?}");
    let bytes: usize =
        [&alarms, &bulk].iter().flat_map(|l| &l.sent).map(|(_, u)| u.payload.len()).sum();
    assert!((1_000_000..1_220_000).contains(&bytes), "{bytes} in a minute");
}

#[test]
fn batches_of_a_hundred_messages_fill_a_long_line() {
    // 10 and 20 Mbit/s, 100 ms there and back; a hundred telemetry messages are about 4 KB.
    for rate in [1.25e6, 2.5e6] {
        let mut lane = Lane::new(&Settings::default(), &Share::new(0), u64::MAX >> 8, 4_000);
        let start = Instant::now();
        let (mut now, mut free, mut done, mut came) = (start, start, 0, 0.0);
        let mut answers = std::collections::VecDeque::new();
        lane.connect(64, now);
        while now < start + MS * 20_000 {
            let before = lane.sent.len();
            lane.go(now).unwrap();
            for (_, upload) in lane.sent.iter().skip(before) {
                let bytes = upload.payload.len() as f64;
                free = free.max(now) + Duration::from_secs_f64(bytes / rate);
                answers.push_back((free + MS * 100, bytes));
            }
            let (at, bytes) = answers.pop_front().unwrap();
            now = now.max(at);
            came += bytes;
            lane.sending.answered(done, Answer::Done, now);
            done += 1;
        }
        assert!(came > 0.8 * rate * 20.0, "{} % of {rate}", 100.0 * came / (rate * 20.0));
    }
}
