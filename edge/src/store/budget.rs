//! What a full lane does: refuse, or give up what is oldest; every give-up leaves a gap that is sent upstream.
//!
//! In: a lane over its budget. Out: rows freed, gaps in their place, counters.
//! Change here: a policy. Not here: telling the publisher (`broker` reads [`crate::status::LaneStatus::full`]).

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use rusqlite::{Connection, OptionalExtension};

use super::{
    Error,
    group::{Group, State},
    outbound::{LaneState, ROW_BYTES, unsigned},
    parts, queues,
};
use crate::lane::Policy;

/// Why rows were given up, as the cloud reads it.
const REASON: &str = "over budget";
const TOO_OLD: &str = "too old";

/// A commit gives up at most so many rows for their age: nobody waits long for it.
const OLD_ROWS: usize = 500;

/// How far to give up.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// So many bytes are free.
    Free(u64),
    /// All rows below this id are given up.
    Below(u64),
}

/// When a lane has to look at the age of its rows next.
pub(super) fn age_due_in(state: &State) -> Option<Duration> {
    let now = state.observed.now_ms();
    let lanes = state.lanes.iter().filter(|lane| lane.batches > 0);
    lanes.filter_map(|lane| lane.seen.due_in(lane.upto, lane.age()?, now)).min()
}

/// Gives up what has waited for too long in lane number `at` of the list, whatever its policy.
fn enforce_age(group: &mut Group<'_>, at: usize) -> Result<(), Error> {
    let (db, state) = (group.db, &mut *group.state);
    let Some(lane) = state.lanes.get_mut(at).filter(|lane| lane.batches > 0) else { return Ok(()) };
    let Some(age) = lane.age() else { return Ok(()) };
    let number = lane.info.number;
    lane.seen.note(db, number, lane.upto, age, &state.observed)?;
    let Some(below) = lane.seen.expired(age, state.observed.now_ms()) else { return Ok(()) };
    let (dropped, done) = give_up_oldest(db, state, at, Goal::Below(below), TOO_OLD)?;
    if done && let Some(lane) = state.lanes.get_mut(at) {
        lane.seen.forget(db, number, below)?;
    }
    group.dropped.push(("lane_age", dropped));
    Ok(())
}

/// From here on QoS 0, which nobody was promised anything for, is no longer kept.
pub(super) fn only_acked(lane: &LaneState) -> bool {
    lane.info.settings.as_ref().is_some_and(|settings| match settings.policy {
        Policy::DropOldest => false,
        Policy::DropQos0First => lane.bytes >= settings.budget_bytes / 10 * 9,
        Policy::Refuse => lane.bytes >= settings.budget_bytes,
    })
}

/// Brings lane number `at` of the list back into its budget, as its policy says.
pub(super) fn enforce(group: &mut Group<'_>, at: usize) -> Result<(), Error> {
    enforce_age(group, at)?;
    let Some(lane) = group.state.lanes.get_mut(at) else { return Ok(()) };
    let Some(settings) = &lane.info.settings else { return Ok(()) };
    let (budget, policy) = (settings.budget_bytes, settings.policy);
    if policy == Policy::Refuse {
        let was = lane.info.status.full.load(Relaxed);
        let full = lane.bytes >= if was { budget / 10 * 9 } else { budget };
        lane.info.status.full.store(full, Relaxed);
        return Ok(());
    }
    if lane.bytes > budget {
        let free = lane.bytes - budget;
        let (dropped, _) = give_up_oldest(group.db, group.state, at, Goal::Free(free), REASON)?;
        group.dropped.push(("lane_budget", dropped));
    }
    Ok(())
}

struct Oldest {
    id: u64,
    epoch: i64,
    s: u64,
    n: u64,
    bytes: u64,
}

/// Turns the oldest unconfirmed batches of lane number `at` of the list into gaps. Neighbours become one gap. What queues
/// need of them is copied first. Answers how many messages went, and whether that is all there is to do.
fn give_up_oldest(
    db: &Connection,
    state: &mut State,
    at: usize,
    goal: Goal,
    reason: &str,
) -> Result<(u64, bool), Error> {
    let mut freed = 0;
    let mut dropped = 0;
    let mut done = true;
    for rows in 0.. {
        match goal {
            Goal::Free(free) if freed >= free => break,
            Goal::Below(_) if rows == OLD_ROWS => {
                done = false;
                break;
            }
            _ => {}
        }
        let Some(lane) = state.lanes.get(at) else { break };
        let after = lane.acked_id.max(lane.given_up_to);
        let oldest = db
            .prepare_cached(
                "SELECT id, epoch, s, n, bytes FROM batch
                 WHERE id > ?1 AND id < ?2 AND reason IS NULL ORDER BY id LIMIT 1",
            )?
            .query_row([after as i64, lane.end() as i64], |row| {
                Ok(Oldest {
                    id: unsigned(row, 0)?,
                    epoch: row.get(1)?,
                    s: unsigned(row, 2)?,
                    n: unsigned(row, 3)?,
                    bytes: unsigned(row, 4)?,
                })
            })
            .optional()?;
        let Some(row) = oldest else { break };
        if matches!(goal, Goal::Below(id) if row.id >= id) {
            break;
        }
        queues::rescue(db, state, row.id)?;
        let Some(lane) = state.lanes.get_mut(at) else { break };
        let gone = give_up(db, lane, &row, reason)?;
        // Those of its messages that were given up before are counted already.
        let live = row.n.saturating_sub(parts::lost(db, row.id)?);
        parts::forget(db, row.id, row.id)?;
        lane.messages = lane.messages.saturating_sub(live);
        lane.bytes = lane.bytes.saturating_sub(gone);
        lane.given_up_to = row.id;
        lane.info.status.given_up.add(live);
        freed += gone;
        dropped += live;
    }
    if let Some(lane) = state.lanes.get_mut(at) {
        lane.save(db)?;
    }
    Ok((dropped, done))
}

/// Answers the bytes freed.
fn give_up(
    db: &Connection,
    lane: &mut LaneState,
    row: &Oldest,
    reason: &str,
) -> Result<u64, Error> {
    // The gap before this row, if it ends where the row begins, becomes part of this one. Not the other way round: the
    // older row may be under way, and all that it has taken in would be forgotten with it when it is confirmed.
    let before: Option<(i64, i64)> = db
        .prepare_cached(
            "SELECT id, s FROM batch WHERE id = (
               SELECT id FROM batch WHERE id > ?1 AND id < ?2 ORDER BY id DESC LIMIT 1)
             AND epoch = ?3 AND s + n = ?4 AND reason = ?5",
        )?
        .query_row((lane.acked_id as i64, row.id as i64, row.epoch, row.s as i64, reason), |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let s = before.map_or(row.s as i64, |(_, s)| s);
    let n = (row.s + row.n) as i64 - s;
    db.prepare_cached(
        "UPDATE batch SET s = ?4, n = ?5, reason = ?2, bytes = ?3, body = NULL WHERE id = ?1",
    )?
    .execute((row.id as i64, reason, ROW_BYTES as i64, s, n))?;
    let Some((older, _)) = before else { return Ok(row.bytes.saturating_sub(ROW_BYTES)) };
    db.prepare_cached("DELETE FROM batch WHERE id = ?1")?.execute([older])?;
    lane.batches = lane.batches.saturating_sub(1);
    Ok(row.bytes)
}
