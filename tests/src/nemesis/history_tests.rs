//! A clean history is clean, and each anomaly is told by its own letter and no other.

use super::history::{History, STREAM, Verdict};
use crate::bridge::Message;

fn payload(source: &str, seq: u64) -> Vec<u8> {
    Message { source: source.to_owned(), incarnation: 0, seq }.payload(0).into_bytes()
}

/// Three messages of one source, acknowledged; read, queued and acked, and in the session.
fn good(source: &str) -> History {
    let mut history = History::default();
    history.books().begin(source);
    for seq in 0..3 {
        history.books().sent(source, 0, seq);
        history.books().acked(source, 0, seq);
        see(&mut history, "live", seq as i64, &payload(source, seq));
        history.high(STREAM, 0, seq as i64 + 1);
    }
    history
}

fn see(history: &mut History, reader: &'static str, offset: i64, payload: &[u8]) {
    history.read_on(reader, STREAM, 0, offset, payload);
    history.ack_sent(payload);
    history.ack_sure(payload);
    history.in_session(payload);
}

fn broken(source: &str, by: impl FnOnce(&mut History)) -> Verdict {
    let mut history = good(source);
    by(&mut history);
    let verdict = history.judge();
    assert_eq!(verdict.is_broken(), !history.examples().is_empty() || verdict.doubled > 0);
    verdict
}

/// Exactly this, and nothing else.
#[track_caller]
fn only(verdict: &Verdict, expected: Verdict) {
    assert_eq!(*verdict, expected);
}

#[test]
fn a_run_without_a_fault_is_clean() {
    only(&broken("amqp a", |_| ()), Verdict::default());
    // Never acknowledged and there: allowed.
    let unsure = |history: &mut History| {
        history.books().sent("amqp a", 0, 3);
        see(history, "live", 3, &payload("amqp a", 3));
        history.high(STREAM, 0, 4);
    };
    only(&broken("amqp a", unsure), Verdict::default());
}

#[test]
fn what_was_acknowledged_and_is_not_there_is_lost() {
    let lose = |history: &mut History| {
        history.books().sent("amqp a", 0, 3);
        history.books().acked("amqp a", 0, 3);
    };
    only(&broken("amqp a", lose), Verdict { lost: 1, ..Verdict::default() });
    let lose = |history: &mut History| {
        history.books().sent("plain p", 0, 3);
        history.books().acked("plain p", 0, 3);
    };
    only(&broken("plain p", lose), Verdict { lost: 1, ..Verdict::default() });
}

#[test]
fn twice_and_out_of_order_count_where_the_door_promises_it() {
    let again = |source: &'static str| {
        move |history: &mut History| {
            history.read_on("live", STREAM, 0, 3, &payload(source, 1));
            history.ack_sent(&payload(source, 1));
            history.high(STREAM, 0, 4);
        }
    };
    only(&broken("gw1 d", again("gw1 d")), Verdict { doubled: 1, ..Verdict::default() });
    only(&broken("plain p", again("plain p")), Verdict::default());
    let late = |history: &mut History| {
        (3..5).for_each(|seq| history.books().sent("gw1 d", 0, seq));
        see(history, "live", 3, &payload("gw1 d", 4));
        see(history, "live", 4, &payload("gw1 d", 3));
        history.high(STREAM, 0, 5);
    };
    // Late from an earlier connection: an edge's device never, others may.
    let from_before = |source: &'static str| {
        move |history: &mut History| {
            history.books().begin(source);
            history.books().sent(source, 1, 0);
            history.books().sent(source, 0, 3);
            let next = Message { source: source.to_owned(), incarnation: 1, seq: 0 }.payload(0);
            see(history, "live", 3, next.as_bytes());
            see(history, "live", 4, &payload(source, 3));
            history.high(STREAM, 0, 5);
        }
    };
    only(&broken("gw1 d", from_before("gw1 d")), Verdict { disordered: 1, ..Verdict::default() });
    only(&broken("amqp a", from_before("amqp a")), Verdict::default());
    let disordered = Verdict { disordered: 1, ..Verdict::default() };
    assert_eq!(broken_without_example("gw1 d", late), disordered);
}

fn broken_without_example(source: &str, by: impl FnOnce(&mut History)) -> Verdict {
    let mut history = good(source);
    by(&mut history);
    history.judge()
}

#[test]
fn what_nobody_sent_is_strange() {
    let invent = |history: &mut History| {
        see(history, "live", 3, &payload("amqp a", 7));
        history.high(STREAM, 0, 4);
    };
    let strange = Verdict { strange: 1, ..Verdict::default() };
    assert_eq!(broken_without_example("amqp a", invent), strange);
}

#[test]
fn one_offset_has_one_value_for_all_readers_at_all_times() {
    let other = |history: &mut History| {
        history.saw("final", STREAM, 0, 1, &payload("amqp a", 2));
    };
    only(&broken("amqp a", other), Verdict { different: 1, ..Verdict::default() });
    let same = |history: &mut History| {
        (0..3).for_each(|seq| {
            history.read_on("final", STREAM, 0, seq, &payload("amqp a", seq as u64));
        });
    };
    only(&broken("amqp a", same), Verdict::default());
}

#[test]
fn readers_go_forward_and_skip_nothing() {
    let back = |history: &mut History| {
        history.read_on("live", STREAM, 0, 1, &payload("amqp a", 1));
    };
    only(&broken("amqp a", back), Verdict { back: 1, ..Verdict::default() });
    let skip = |history: &mut History| {
        history.read_on("final", STREAM, 0, 0, &payload("amqp a", 0));
        history.read_on("final", STREAM, 0, 2, &payload("amqp a", 2));
    };
    only(&broken("amqp a", skip), Verdict { holes: 1, ..Verdict::default() });
    let never = |history: &mut History| history.high(STREAM, 0, 5);
    only(&broken("amqp a", never), Verdict { holes: 2, ..Verdict::default() });
    let beyond = |history: &mut History| {
        history.books().sent("amqp a", 0, 3);
        see(history, "live", 3, &payload("amqp a", 3));
    };
    only(&broken("amqp a", beyond), Verdict { back: 1, ..Verdict::default() });
}

#[test]
fn watermarks_and_commits_never_fall() {
    let fall = |history: &mut History| history.high(STREAM, 0, 2);
    only(&broken("amqp a", fall), Verdict { high_fell: 1, ..Verdict::default() });
    let fall = |history: &mut History| {
        history.committed(STREAM, 0, 2);
        history.resumes_at(STREAM, 0, 2);
        history.resumes_at(STREAM, 0, 1);
    };
    only(&broken("amqp a", fall), Verdict { commit_fell: 1, ..Verdict::default() });
}

#[test]
fn the_queue_gives_what_is_not_acked_and_only_that() {
    let again = |history: &mut History| {
        history.ack_sent(&payload("amqp a", 1));
        history.ack_sure(&payload("amqp a", 1));
    };
    only(&broken("amqp a", again), Verdict { redelivered: 1, ..Verdict::default() });
    let record = payload("amqp a", 3);
    let in_log = |history: &mut History| {
        history.books().sent("amqp a", 0, 3);
        history.read_on("live", STREAM, 0, 3, &record);
        history.in_session(&record);
        history.high(STREAM, 0, 4);
    };
    let undelivered = Verdict { undelivered: 1, ..Verdict::default() };
    only(&broken("amqp a", in_log), undelivered);
    // An ack that was not answered: it may come again, and need not.
    let unsure = |history: &mut History| {
        in_log(history);
        history.ack_sent(&record);
    };
    only(&broken("amqp a", unsure), Verdict::default());
}

#[test]
fn the_session_gets_all_of_the_log_and_nothing_else() {
    let record = payload("amqp a", 3);
    let missing = |history: &mut History| {
        history.books().sent("amqp a", 0, 3);
        history.read_on("live", STREAM, 0, 3, &record);
        history.high(STREAM, 0, 4);
        history.ack_sent(&record);
    };
    only(&broken("amqp a", missing), Verdict { unequal: 1, ..Verdict::default() });
    let stranger = |history: &mut History| history.in_session(b"amqp a 0 9");
    only(&broken("amqp a", stranger), Verdict { unequal: 1, ..Verdict::default() });
}
