//! What the cloud has in the end against what devices were promised. Pure.
//!
//! Every sequence of every life of a gateway is in the cloud exactly once, as the very message that had it or inside a
//! declared gap, without holes up to the cloud's mark; and every message that was acknowledged is below that mark.
//! Counts: L lost, D duplicated, O out of order, G never sent or at a wrong place.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Inner, LaneLife};

/// One record in the cloud.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Order holds within it.
    pub(super) place: u64,
    pub(super) edge: String,
    pub(super) seq: Option<u64>,
    pub(super) message: Option<u64>,
    /// Epoch, from, to, reason.
    pub(super) gap: Option<(i64, u64, u64, String)>,
}

/// What must be 0, and how much there was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, and neither in the cloud nor declared.
    pub lost: u64,
    /// In the cloud more than once, or once and declared lost too.
    pub duplicated: u64,
    /// Out of order within a gateway's lane.
    pub disordered: u64,
    /// Never sent, or not where it belongs; a hole below a mark; a mark that does not fit.
    pub strange: u64,
    /// Innocent messages that were given up for a neighbour that the cloud refuses.
    pub innocents: u64,
    /// Acknowledged to devices.
    pub acked: u64,
    /// In the cloud.
    pub records: u64,
    /// Acknowledged and declared lost.
    pub declared: u64,
    /// Acknowledged, and gone with a disk that was replaced by an older one.
    pub destroyed: u64,
}

impl Verdict {
    /// Nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.lost + self.duplicated + self.disordered + self.strange + self.innocents == 0
    }
}

/// Where the sequences of one life in one lane went.
#[derive(Default)]
struct Seen {
    records: BTreeSet<u64>,
    gaps: BTreeMap<u64, String>,
}

/// Judges what is stored, with the cloud's marks. Adds to the faults of the world what it finds.
pub(super) fn judge(world: &mut Inner, stored: &[Stored], marks: &[(i64, u64)]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<(usize, String), Seen> = BTreeMap::new();
    let mut last: BTreeMap<(u64, usize, String), (usize, usize)> = BTreeMap::new();
    for entry in stored {
        if let Some(gap) = &entry.gap {
            gap_seen(world, gap, &mut seen, &mut verdict, &mut wrong);
            continue;
        }
        verdict.records += 1;
        let found = entry.message.and_then(|number| world.messages.get(number as usize));
        let Some(message) = found else {
            verdict.strange += 1;
            wrong.push(format!("never sent: {entry:?}"));
            continue;
        };
        let host = world.lives[message.life].host;
        if entry.edge != world.hosts[host].edge_id || entry.seq != Some(message.place as u64) {
            verdict.strange += 1;
            wrong.push(format!("belongs to {host} {} {}: {entry:?}", message.lane, message.place));
        }
        let of_lane = seen.entry((message.life, message.lane.clone())).or_default();
        if !of_lane.records.insert(message.place as u64) {
            verdict.duplicated += 1;
            wrong.push(format!("twice: {entry:?}"));
            continue;
        }
        let at = (message.life, message.place);
        let before = last.insert((entry.place, host, message.lane.clone()), at);
        if before.is_some_and(|before| before > at) {
            verdict.disordered += 1;
            wrong.push(format!("after {before:?}: {at:?} {entry:?}"));
        }
    }
    let marks: BTreeMap<i64, u64> = marks.iter().copied().collect();
    for (life, of_life) in world.lives.iter().enumerate() {
        for (name, lane) in &of_life.lanes {
            let empty = Seen::default();
            let seen = seen.get(&(life, name.clone())).unwrap_or(&empty);
            let mark = lane.epoch.and_then(|epoch| marks.get(&epoch).copied()).unwrap_or(0);
            let label = format!("life {life} {name}");
            lane_seen(world, &label, lane, seen, mark, &mut verdict, &mut wrong);
        }
    }
    for ((edge, epoch), next) in &world.promised {
        if marks.get(epoch).copied().unwrap_or(0) < *next {
            verdict.strange += 1;
            wrong.push(format!("{edge} was promised {epoch}:{next}"));
        }
    }
    for line in wrong {
        world.fault(&line);
    }
    verdict
}

fn gap_seen(
    world: &Inner,
    (epoch, from, to, reason): &(i64, u64, u64, String),
    seen: &mut BTreeMap<(usize, String), Seen>,
    verdict: &mut Verdict,
    wrong: &mut Vec<String>,
) {
    let Some(of) = world.epochs.get(epoch) else {
        verdict.strange += 1;
        wrong.push(format!("a gap in an unknown epoch: {epoch}:{from}..{to}"));
        return;
    };
    let gaps = &mut seen.entry(of.clone()).or_default().gaps;
    for seq in *from..*to {
        if gaps.insert(seq, reason.clone()).is_some() {
            verdict.duplicated += 1;
            wrong.push(format!("declared twice: {of:?} {seq}"));
        }
    }
}

fn lane_seen(
    world: &Inner,
    label: &str,
    lane: &LaneLife,
    seen: &Seen,
    mark: u64,
    verdict: &mut Verdict,
    wrong: &mut Vec<String>,
) {
    verdict.acked += lane.acked as u64;
    for seq in 0..mark {
        match (seen.records.contains(&seq), seen.gaps.contains_key(&seq)) {
            (true, true) => {
                verdict.duplicated += 1;
                wrong.push(format!("{label} {seq} is there and declared lost"));
            }
            (false, false) => {
                verdict.strange += 1;
                wrong.push(format!("{label} {seq}: a hole below the mark {mark}"));
            }
            _ => {}
        }
    }
    if let Some(beyond) = seen.records.iter().chain(seen.gaps.keys()).find(|seq| **seq >= mark) {
        verdict.strange += 1;
        wrong.push(format!("{label} {beyond}: above the mark {mark}"));
    }
    for (place, number) in lane.messages.iter().enumerate() {
        let (seq, acked) = (place as u64, place < lane.acked);
        let message = &world.messages[*number as usize];
        if let Some(reason) = seen.gaps.get(&seq) {
            verdict.declared += u64::from(acked);
            if reason.contains("refused") && !message.poison {
                verdict.innocents += 1;
                wrong.push(format!("{label} {seq}: given up for a neighbour: {reason}"));
            }
        } else if acked && !seen.records.contains(&seq) {
            if lane.destroyed_from.is_some_and(|from| place >= from) {
                verdict.destroyed += 1;
            } else {
                verdict.lost += 1;
                wrong.push(format!("{label} {seq}: message {number} was acknowledged and is lost"));
            }
        }
    }
}
