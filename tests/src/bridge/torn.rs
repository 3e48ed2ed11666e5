//! Torn and reordered writes: what the edge wrote and synced is recorded, and its files are made anew as a power cut at a random
//! moment could have left them; each such disk is opened by the edge itself and drained.
//!
//! What was synced is there. Of what was written after the last sync of its file each write is there, or is not, or only some of
//! its sectors of 512 bytes are. That is a simulation: of one file system's promises (a file's length and name are as after the
//! last write that is there), not of a disk's electronics. Holds: [`Torn`]. Not here: cuts of a real file system (`outage::disk`).

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde::Serialize;

use super::{Books, CLOUD, EDGE, Live, Message, Verdict, odd::copy, readers::read_kafka};
use crate::{
    Cloud, Device, Edge, outage::preload::recorder_library, process::free_address, random::Random,
};

/// What a disk writes at once.
const SECTOR: usize = 512;
const MESSAGES: u64 = 600;
const BYTES: usize = 700;
const WINDOW: usize = 10;
const PATIENCE: Duration = Duration::from_mins(1);

/// What came of a run.
#[derive(Debug, Default, Serialize)]
pub struct Torn {
    /// Disks that were opened.
    pub disks: usize,
    /// Writes and syncs recorded.
    pub calls: usize,
    /// Messages acknowledged before the cuts, of all disks.
    pub acked: u64,
    /// All disks together.
    pub verdict: Verdict,
}

/// Bytes of a recorded call before the file's name: kind, and lengths of the name, offset, length of the data.
const HEAD: usize = 32;

/// One recorded call.
struct Call {
    file: String,
    change: Change,
}

/// What it did.
enum Change {
    Write { at: usize, data: Vec<u8> },
    Length(usize),
    Sync,
}

impl Torn {
    /// A promise was not kept.
    pub fn is_broken(&self) -> bool {
        self.verdict.is_broken()
    }

    /// So many disks. `lying`: syncs of SQLite's log count for nothing, which must lose.
    pub fn run(disks: usize, lying: bool, seed: u64) -> Result<Self, String> {
        let why = |error: std::io::Error| error.to_string();
        let folder = tempfile::tempdir().map_err(why)?;
        let (base, data) = (folder.path().join("base"), folder.path().join("data"));
        let tape = folder.path().join("tape");
        // A cloud that is never there: everything stays on the disk.
        let nowhere = Some(free_address());
        let mut edge = Edge::start_with(&data, "gw1", nowhere, &EDGE);
        edge.process.stop();
        copy(&data, &base)?;
        let library = recorder_library(folder.path())?;
        let environment =
            [("LD_PRELOAD", library), ("TAPE", tape.clone()), ("TAPED", data.clone())];
        let edge = Edge::start_in(&data, "gw1", nowhere, &EDGE, &environment);
        let acks = publish(&edge, &tape, MESSAGES);
        drop(edge);
        let recorded = fs::read(&tape).map_err(why)?;
        let calls = parse(&recorded);
        let first = acks.first().map_or(0, |(_, at)| *at);
        let later: Vec<_> = calls.iter().map(|(end, _)| *end).filter(|end| *end > first).collect();
        if later.is_empty() {
            return Err("nothing was recorded: is the edge linked statically?".to_owned());
        }
        let mut random = Random::new(seed);
        let mut torn = Self { disks, calls: calls.len(), ..Self::default() };
        for _ in 0..disks {
            let cut = random.pick(&later);
            let image = folder.path().join("image");
            copy(&base, &image)?;
            let kept = calls.iter().take_while(|(end, _)| *end <= cut).map(|(_, call)| call);
            restore(&image, &kept.collect::<Vec<_>>(), lying, &mut random).map_err(why)?;
            torn.open(folder.path(), &image, &acks, cut)?;
            if lying && torn.verdict.lost > 0 {
                break;
            }
        }
        Ok(torn)
    }

    /// Lets the edge open it, and a new cloud have all that is there.
    fn open(
        &mut self,
        folder: &Path,
        image: &Path,
        published: &[(Message, u64)],
        cut: u64,
    ) -> Result<(), String> {
        let why = |error: std::io::Error| error.to_string();
        let data = folder.join("cloud");
        let _ = fs::remove_dir_all(&data);
        let cloud = Cloud::start_with(&format!("file://{}", data.display()), &CLOUD);
        let live = Live::start(cloud.kafka);
        let edge = Edge::start_with(image, "gw1", Some(cloud.mqtt), &EDGE);
        let mut books = Books::default();
        let last = Message { source: "gw1 last".to_owned(), incarnation: 0, seq: 0 };
        for source in [&published[0].0.source, &last.source] {
            assert_eq!(books.begin(source), 0);
        }
        for (message, at) in published {
            books.sent(&message.source, 0, message.seq);
            if *at <= cut {
                books.acked(&message.source, 0, message.seq);
            }
        }
        self.acked += books.acked_count();
        books.sent(&last.source, 0, 0);
        let one = [("load/gw1/last".to_owned(), last.payload(60).into())];
        let mut device = Device::connect(edge.mqtt, "last").map_err(why)?;
        device.publish_all(one, 1, |_| books.acked(&last.source, 0, 0)).map_err(why)?;
        assert!(live.wait_for(&last, PATIENCE), "what the edge holds does not reach the cloud");
        self.verdict.add(&books.verdict(&read_kafka(cloud.kafka, &last)));
        Ok(())
    }
}

/// Publishes so many messages; each with the length of the tape when its acknowledgement had come.
fn publish(edge: &Edge, tape: &Path, count: u64) -> Vec<(Message, u64)> {
    let message = |seq| Message { source: "gw1 a".to_owned(), incarnation: 0, seq };
    let messages =
        (0..count).map(|seq| ("load/gw1/a".to_owned(), message(seq).payload(BYTES).into()));
    let mut published = Vec::new();
    let mut device = Device::connect(edge.mqtt, "a").expect("connected");
    let acked = |index| {
        let length = fs::metadata(tape).expect("a tape").len();
        published.push((message(index as u64), length));
    };
    device.publish_all(messages, WINDOW, acked).expect("acknowledged");
    published
}

/// The calls and where each ends on the tape. A last one that is not whole was under way.
fn parse(tape: &[u8]) -> Vec<(u64, Call)> {
    let (mut calls, mut at) = (Vec::new(), 0);
    while let Some(head) = tape.get(at..at + HEAD) {
        let number = |from: usize| u64::from_ne_bytes(head[from..from + 8].try_into().expect("8"));
        let (kind, name, offset, length) = (number(0), number(8), number(16), number(24));
        let data_at = at + HEAD + name as usize;
        let Some(data) = tape.get(data_at..data_at + length as usize) else { break };
        let file = String::from_utf8_lossy(&tape[at + HEAD..data_at]).into_owned();
        at = data_at + data.len();
        let change = match kind {
            0 => Change::Write { at: offset as usize, data: data.to_vec() },
            1 => Change::Length(offset as usize),
            _ => Change::Sync,
        };
        calls.push((at as u64, Call { file, change }));
    }
    calls
}

/// Makes the files of the folder what the calls may have left.
fn restore(
    folder: &Path,
    calls: &[&Call],
    lying: bool,
    random: &mut Random,
) -> std::io::Result<()> {
    let mut files: BTreeMap<&str, (Vec<u8>, Vec<&Change>)> = BTreeMap::new();
    for Call { file, change } in calls.iter().copied() {
        let (bytes, pending) = files
            .entry(file)
            .or_insert_with(|| (fs::read(folder.join(file)).unwrap_or_default(), Vec::new()));
        match change {
            Change::Sync if lying && file.ends_with("-wal") => {}
            Change::Sync => pending.drain(..).for_each(|change| change.apply(bytes, |_| true)),
            change => pending.push(change),
        }
    }
    for (file, (mut bytes, pending)) in files {
        for change in pending {
            match random.below(3) {
                0 => {}
                1 => change.apply(&mut bytes, |_| true),
                _ => change.apply(&mut bytes, |_| random.percent(50)),
            }
        }
        fs::write(folder.join(file), bytes)?;
    }
    Ok(())
}

impl Change {
    /// Those of its sectors that are asked for.
    fn apply(&self, bytes: &mut Vec<u8>, mut sector: impl FnMut(usize) -> bool) {
        match self {
            Self::Length(length) => bytes.resize(*length, 0),
            Self::Write { at, data } => {
                // Sectors are those of the disk, not of the write.
                let mut from = 0;
                while let Some(rest) = data.get(from..).filter(|rest| !rest.is_empty()) {
                    let place = at + from;
                    let length = rest.len().min(SECTOR - place % SECTOR);
                    if sector(place / SECTOR) {
                        if bytes.len() < place + length {
                            bytes.resize(place + length, 0);
                        }
                        bytes[place..place + length].copy_from_slice(&rest[..length]);
                    }
                    from += length;
                }
            }
            Self::Sync => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_leaves_whole_sectors() {
        let change = Change::Write { at: 500, data: vec![7; 600] };
        let mut bytes = vec![1; 500];
        change.apply(&mut bytes, |sector| sector == 1);
        assert_eq!(bytes.len(), 1024);
        assert_eq!((bytes[499], bytes[500], bytes[511], bytes[512], bytes[1023]), (1, 0, 0, 7, 7));
        change.apply(&mut bytes, |_| true);
        assert_eq!((bytes.len(), bytes[500], bytes[1099]), (1100, 7, 7));
    }
}
