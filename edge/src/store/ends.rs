//! How far each epoch came, told by a second witness: a file of one page beside the database.
//!
//! Rows lost in the middle leave a hole that `uplink` sees. Rows lost at the end of an epoch leave nothing, in the database
//! or in a write-ahead log that is gone. So after each commit the epoch's end is written here, in place and without a flush:
//! it costs one write into memory, and the kernel brings the page to the disk twice a minute. After a power cut it may
//! lag behind the database, which does no harm.
//!
//! In: lanes after a commit; an opened store. Out: gaps for what is missing at the ends. A gap may say too much, up to what
//! the cloud has already: `uplink` cuts it to what the cloud expects. Change here: what is remembered.
//! Not here: holes (`uplink::plan`), saving rows (`salvage`).

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rusqlite::{Connection, OptionalExtension};

use super::{
    Error, lane_start,
    outbound::{LaneState, ROW_BYTES, unsigned},
};

/// Epochs that are remembered; of more the oldest are forgotten.
const SLOTS: usize = 128;

/// Bytes of a slot: crc32c of the rest, lane, epoch, end, row; little-endian.
const SLOT: usize = 32;

/// Why, as the cloud reads it.
const REASON: &str = "lost in a damaged store";

/// Where an epoch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    lane: u16,
    epoch: i64,
    /// One after the last sequence.
    until: u64,
    /// Its last row.
    id: u64,
}

impl End {
    fn write(self) -> [u8; SLOT] {
        let mut rest = Vec::with_capacity(SLOT);
        rest.extend(u32::from(self.lane).to_le_bytes());
        rest.extend(self.epoch.to_le_bytes());
        rest.extend(self.until.to_le_bytes());
        rest.extend(self.id.to_le_bytes());
        let crc = crc32c::crc32c(&rest).to_le_bytes();
        let mut out = [0; SLOT];
        for (to, from) in out.iter_mut().zip(crc.iter().chain(&rest)) {
            *to = *from;
        }
        out
    }

    fn read(slot: &[u8]) -> Option<Self> {
        let number = |from: usize, bytes: usize| -> Option<u64> {
            let mut wide = [0; 8];
            wide.get_mut(..bytes)?.copy_from_slice(slot.get(from..from + bytes)?);
            Some(u64::from_le_bytes(wide))
        };
        let crc = u64::from(crc32c::crc32c(slot.get(4..SLOT)?));
        let (lane, epoch) = (number(4, 4)? as u16, number(8, 8)? as i64);
        let end = Self { lane, epoch, until: number(16, 8)?, id: number(24, 8)? };
        (number(0, 4)? == crc && end.id > 0).then_some(end)
    }
}

/// The file. Without it everything goes on, and the end of what is lost is not known.
#[derive(Debug)]
pub(super) struct Ends {
    file: Option<File>,
    slots: Vec<Option<End>>,
}

impl Ends {
    pub(super) fn open(path: &Path) -> Self {
        let (file, slots) = match open(path) {
            Ok((file, slots)) => (Some(file), slots),
            Err(error) => {
                tracing::warn!(%error, "no file with the ends of epochs");
                (None, Vec::new())
            }
        };
        Self { file, slots }
    }

    /// After a commit: where the lanes are.
    pub(super) fn note(&mut self, lanes: &[LaneState]) {
        for lane in lanes {
            let Some(epoch) = lane.epoch else { continue };
            let end = End { lane: lane.info.number, epoch, until: lane.next_seq, id: lane.upto };
            let Some(at) = self.slot(&end, lanes) else { continue };
            let Some(slot) = self.slots.get_mut(at) else { continue };
            if *slot == Some(end) {
                continue;
            }
            *slot = Some(end);
            let written = self
                .file
                .as_ref()
                .map_or(Ok(()), |file| file.write_all_at(&end.write(), (at * SLOT) as u64));
            if let Err(error) = written {
                tracing::warn!(%error, "cannot write the ends of epochs");
                self.file = None;
            }
        }
    }

    /// Its own, a free one, one whose rows the cloud has, or the oldest.
    fn slot(&self, end: &End, lanes: &[LaneState]) -> Option<usize> {
        let own =
            |slot: &Option<End>| slot.is_some_and(|s| (s.lane, s.epoch) == (end.lane, end.epoch));
        if let Some(at) = self.slots.iter().position(own) {
            return Some(at);
        }
        let worth = |slot: &Option<End>| match slot {
            None => (0, 0),
            Some(old) if is_acked(old, lanes) => (1, 0),
            Some(old) => (2, old.id & (lane_start(1) - 1)),
        };
        let cheapest = self.slots.iter().enumerate().min_by_key(|(_, slot)| worth(slot));
        cheapest.map(|(at, _)| at)
    }

    /// Puts a gap where the database lacks the end of an epoch. Answers whether there was one.
    pub(super) fn declare(&self, db: &Connection, lanes: &[LaneState]) -> Result<bool, Error> {
        let mut ends: Vec<End> = self.slots.iter().flatten().copied().collect();
        ends.sort_by_key(|end| end.id);
        let mut declared = false;
        for end in ends {
            let known = lanes.iter().any(|lane| lane.info.number == end.lane);
            if known && !is_acked(&end, lanes) {
                declared |= declare(db, &end)?;
            }
        }
        Ok(declared)
    }
}

fn is_acked(end: &End, lanes: &[LaneState]) -> bool {
    lanes.iter().any(|lane| lane.info.number == end.lane && end.id <= lane.acked_id)
}

fn declare(db: &Connection, end: &End) -> Result<bool, Error> {
    let last: Option<(u64, i64, u64)> = db
        .prepare_cached(
            "SELECT id, epoch, s + n FROM batch WHERE id > ?1 AND id <= ?2 ORDER BY id DESC LIMIT 1",
        )?
        .query_row([lane_start(end.lane) as i64, end.id as i64], |row| {
            Ok((unsigned(row, 0)?, row.get(1)?, unsigned(row, 2)?))
        })
        .optional()?;
    let from = match last {
        Some((_, epoch, until)) if epoch == end.epoch => until,
        _ => 0,
    };
    if from >= end.until || last.is_some_and(|(id, ..)| id == end.id) {
        return Ok(false);
    }
    // The epoch may have gone on after it was noted here, when the process was killed between the commit and the note; rows
    // up to there may be merged since with one behind. A hole before that one is `uplink`'s to see.
    let next: Option<i64> = db
        .prepare_cached("SELECT epoch FROM batch WHERE id > ?1 AND id < ?2 ORDER BY id LIMIT 1")?
        .query_row([end.id as i64, lane_start(end.lane + 1) as i64], |row| row.get(0))
        .optional()?;
    if next == Some(end.epoch) {
        return Ok(false);
    }
    let (lane, n) = (end.lane, end.until - from);
    tracing::error!(lane, from, n, "messages at the end of an epoch are lost; the cloud is told");
    db.prepare_cached(
        "INSERT INTO batch(id, epoch, s, n, bytes, made_ms, reason) VALUES(?1,?2,?3,?4,?5,?6,?7)",
    )?
    .execute((
        end.id as i64,
        end.epoch,
        from as i64,
        n as i64,
        ROW_BYTES as i64,
        tributary_shared::clock::wall_ms(),
        REASON,
    ))?;
    // Counted again: what was saved knows nothing of the gap.
    db.execute(
        "UPDATE lane SET upto = acked_id, batches = 0, messages = 0, bytes = 0 WHERE number = ?1",
        [lane],
    )?;
    Ok(true)
}

fn open(path: &Path) -> io::Result<(File, Vec<Option<End>>)> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let bytes = SLOTS * SLOT;
    if file.metadata()?.len() < bytes as u64 {
        // Written now, so that it needs no room when the disk is full.
        file.write_all_at(&vec![0; bytes], 0)?;
    }
    let mut page = vec![0; bytes];
    file.read_exact_at(&mut page, 0)?;
    Ok((file, page.chunks_exact(SLOT).map(End::read).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_reads_back_and_a_damaged_one_says_nothing() {
        let end = End { lane: 3, epoch: i64::MAX, until: 1 << 40, id: lane_start(3) | 9 };
        let mut slot = end.write();
        assert_eq!(End::read(&slot), Some(end));
        slot[20] ^= 1;
        assert_eq!(End::read(&slot), None);
        assert_eq!(End::read(&[0; SLOT]), None);
    }
}
