//! Gateways in odd states: an old image of the disk is put back, two have one card, two go on from one memory, the clock is ten
//! years off. What was acknowledged and was not on the lost disk only is in the cloud's log once and in order, and the cloud says
//! in words what is wrong.
//!
//! Holds: [`Odd`], a run of one kind. Not here: kills and cuts (`mod`), which versions of these the simulation has (`simulation`).

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rdkafka::Message as _;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;
use tributary_shared::mqtt::Qos;

use super::{
    Books, CLOUD, EDGE, Live, Message, Verdict,
    readers::{STREAM, read_kafka},
};
use crate::{
    Cloud, Device, Edge, http_get,
    kafka::Reader,
    outage::preload::{clock_library, same_numbers_library},
    process::until,
    random::Random,
};

/// How long what waits may take to arrive, and an alarm to be raised.
const PATIENCE: Duration = Duration::from_mins(1);
const WINDOW: usize = 50;
/// Messages that a device publishes at once.
const BURST: u64 = 200;
const TEN_YEARS_S: i64 = 10 * 365 * 86_400;
const DAY_MS: i64 = 86_400_000;
/// A lane whose messages may wait an hour: a wrong clock must not make them older.
const AGED: &str = "[[lanes]]\nname = \"normal\"\nbudget_age_s = 3600\n";

/// What came of a run.
#[derive(Debug, Default, Serialize)]
pub struct Odd {
    /// Rounds of it.
    pub rounds: usize,
    /// Acknowledged by the gateways.
    pub acked: u64,
    /// What the cloud's log has of that.
    pub verdict: Verdict,
    /// What the cloud said of the gateway.
    pub alarms: Vec<String>,
}

impl Odd {
    /// A promise was not kept.
    pub fn is_broken(&self) -> bool {
        self.verdict.is_broken()
    }

    /// The disk as it was when the gateway was off is put back, after more was synced. What is on it only in the image may be
    /// unsent (the cloud is frozen in every second round), and was sent since.
    pub fn restored(rounds: usize, seed: u64) -> Result<Self, String> {
        let mut site = Site::new()?;
        let mut random = Random::new(seed);
        let (data, image) = (site.path("a"), site.path("image"));
        let mut edge = site.edge(&data, &[]);
        for round in 0..rounds {
            site.publish(&edge, "a", 1 + random.below(BURST as usize) as u64);
            let frozen = round % 2 == 0;
            if frozen {
                site.cloud.process.signal("STOP");
            }
            for _ in 0..=random.below(3) {
                // Each its own connection, so several rows and, after a restart, epochs.
                site.publish(&edge, "a", 1 + random.below(BURST as usize) as u64);
            }
            edge.process.kill();
            copy(&data, &image)?;
            if frozen {
                site.cloud.process.signal("CONT");
            }
            edge.start_again()?;
            for _ in 0..=random.below(3) {
                site.publish(&edge, "a", 1 + random.below(BURST as usize) as u64);
            }
            site.arrived(&edge, "a");
            edge.process.kill();
            copy(&image, &data)?;
            edge.start_again()?;
        }
        site.publish(&edge, "a", BURST);
        let last = site.arrived(&edge, "a");
        Ok(site.finish(rounds, &last, false))
    }

    /// A card is copied with messages on it that wait, and both gateways are on at once, with one id. The cloud must say so.
    pub fn cloned(rounds: usize) -> Result<Self, String> {
        let mut site = Site::new()?;
        let (card, copied) = (site.path("a"), site.path("b"));
        let mut first = site.edge(&card, &[]);
        site.cloud.process.signal("STOP");
        site.publish(&first, "a", BURST);
        first.process.kill();
        copy(&card, &copied)?;
        first.start_again()?;
        let mut second = site.edge(&copied, &[]);
        site.cloud.process.signal("CONT");
        for round in 0..rounds {
            site.publish(&first, "a", BURST);
            site.publish(&second, "b", BURST);
            if round % 3 == 1 {
                first.start_again()?;
            } else if round % 3 == 2 {
                second.start_again()?;
            }
        }
        site.arrived(&first, "a");
        let last = site.arrived(&second, "b");
        site.alarm("duplicate edge id");
        Ok(site.finish(rounds, &last, true))
    }

    /// Two gateways go on from one memory, so with one id and one epoch, and other messages in it.
    pub fn snapshot() -> Result<Self, String> {
        let mut site = Site::new()?;
        let own = site.path("own");
        let library = same_numbers_library(site.folder.path())?;
        let environment = [("LD_PRELOAD", library), ("OWN_NUMBERS", own.clone())];
        let edges = ["a", "b"].map(|name| site.edge(&site.path(name), &environment));
        site.cloud.process.kill();
        for (edge, device) in edges.iter().zip(["a", "b"]) {
            site.publish(edge, device, BURST);
        }
        fs::write(&own, "").map_err(|error| error.to_string())?;
        site.cloud.start_again()?;
        for (edge, device) in edges.iter().zip(["a", "b"]) {
            site.publish(edge, device, BURST);
        }
        let [first, second] = &edges;
        site.arrived(first, "a");
        let last = site.arrived(second, "b");
        site.alarm("epoch used twice");
        Ok(site.finish(1, &last, true))
    }

    /// The clock of the gateway jumps ten years back and forward, while it runs and between its lives, with and without a cloud.
    /// No message gets too old by it for its lane, none is missing in a session's queue, no record has an absurd time.
    pub fn wrong_clock(rounds: usize) -> Result<Self, String> {
        let mut site = Site::new()?;
        let (offset, settings) = (site.path("offset"), site.path("edge.toml"));
        // In place: processes have it mapped.
        let clock = fs::File::create(&offset).map_err(|error| error.to_string())?;
        let jump =
            |seconds: i64| clock.write_all_at(&seconds.to_ne_bytes(), 0).expect("a clock is set");
        fs::write(&settings, AGED).map_err(|error| error.to_string())?;
        let library = clock_library(site.folder.path())?;
        let environment = [("LD_PRELOAD", library), ("CLOCK_OFFSET", offset.clone())];
        jump(-TEN_YEARS_S);
        let settings = settings.to_str().expect("a path");
        let arguments = [&EDGE[..], &["--config", settings]].concat();
        let data = site.path("a");
        let mut edge =
            Edge::start_in(&data, "gw1", Some(site.cloud.mqtt), &arguments, &environment);
        let mut reader = Device::connect_persistent(edge.mqtt, "away").expect("a session");
        reader.subscribe("load/#", Qos::AtLeastOnce).expect("subscribed");
        drop(reader);
        for round in 0..rounds {
            let away = round % 2 == 0;
            if away {
                site.cloud.process.kill();
            }
            for seconds in [-TEN_YEARS_S, TEN_YEARS_S, 0, TEN_YEARS_S, -TEN_YEARS_S] {
                jump(seconds);
                site.publish(&edge, "a", BURST / 4);
                if (round + usize::from(seconds == 0)) % 2 == 1 {
                    edge.process.kill();
                    jump(-seconds);
                    edge.start_again()?;
                }
            }
            if away {
                site.cloud.start_again()?;
            }
            site.arrived(&edge, "a");
        }
        jump(TEN_YEARS_S);
        site.publish(&edge, "a", BURST);
        let last = site.arrived(&edge, "a");
        site.alarm("wrong clock");
        let mut reader = Device::connect_persistent(edge.mqtt, "away").expect("the session");
        assert!(reader.connack.session_present, "the session has ended");
        let mut got = 0;
        while got < site.books.acked_count() {
            let message = reader.message().expect("what waited for the session");
            got += u64::from(Message::read(&message.payload).is_some());
        }
        site.check_times();
        Ok(site.finish(rounds, &last, false))
    }
}

/// A cloud and what was promised to devices.
struct Site {
    cloud: Cloud,
    live: Live,
    books: Books,
    alarms: Vec<String>,
    folder: TempDir,
}

impl Site {
    fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let data = format!("file://{}", folder.path().join("cloud").display());
        let cloud = Cloud::start_with(&data, &CLOUD);
        let live = Live::start(cloud.kafka);
        Ok(Self { cloud, live, books: Books::default(), alarms: Vec::new(), folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A gateway with that data; all have one id.
    fn edge(&self, data: &Path, environment: &[(&str, PathBuf)]) -> Edge {
        Edge::start_in(data, "gw1", Some(self.cloud.mqtt), &EDGE, environment)
    }

    /// So many messages of a new incarnation, all acknowledged. The last one.
    fn publish(&mut self, edge: &Edge, device: &str, count: u64) -> Message {
        let source = format!("gw1 {device}");
        let incarnation = self.books.begin(&source);
        let message = |seq| Message { source: source.clone(), incarnation, seq };
        let messages = (0..count).map(|seq| {
            let payload = message(seq).payload(60);
            (format!("load/gw1/{device}"), payload.into())
        });
        (0..count).for_each(|seq| self.books.sent(&source, incarnation, seq));
        let mut client = Device::connect(edge.mqtt, device).expect("connected");
        let acked = |index| self.books.acked(&source, incarnation, index as u64);
        client.publish_all(messages, WINDOW, acked).expect("acknowledged");
        message(count - 1)
    }

    /// One message more of a device, behind all others: it has arrived, so they must have.
    fn arrived(&mut self, edge: &Edge, device: &str) -> Message {
        let last = self.publish(edge, device, 1);
        assert!(
            self.live.wait_for(&last, PATIENCE),
            "what the edge holds does not reach the cloud"
        );
        last
    }

    /// Waits until the cloud shows this alarm.
    fn alarm(&mut self, words: &str) {
        until(words, || {
            let page = http_get(self.cloud.admin, "/api/edges");
            let said: Value = serde_json::from_str(&page).expect("json");
            let alarms = said["edges"][0]["alarms"].as_array().cloned().unwrap_or_default();
            let said_words = alarms.iter().filter_map(|alarm| alarm.as_str().map(str::to_owned));
            self.alarms = said_words.collect();
            self.alarms.iter().any(|alarm| alarm == words)
        });
    }

    /// Every record has a time that can be true.
    fn check_times(&self) {
        let reader = Reader::new(self.cloud.kafka, STREAM);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("after 1970").as_millis() as i64;
        for _ in 0..self.books.acked_count() {
            let record = reader.next(PATIENCE).expect("a record");
            let time = record.timestamp().to_millis().expect("a time");
            // The cloud lets clocks be a day ahead.
            assert!((now - time).abs() < 2 * DAY_MS, "a record of {time} ms");
        }
    }

    /// With two gateways of one id their sequences are mixed, and say nothing.
    fn finish(self, rounds: usize, last: &Message, mixed: bool) -> Odd {
        let mut log = read_kafka(self.cloud.kafka, last);
        if mixed {
            log.forget_sequences();
        }
        let mut verdict = self.books.verdict(&log);
        verdict.different = self.live.finish().different(&log);
        Odd { rounds, acked: self.books.acked_count(), verdict, alarms: self.alarms }
    }
}

/// Makes the second folder what the first is.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let copied = || {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(())
    };
    copied().map_err(|error: std::io::Error| format!("{}: {error}", from.display()))
}
