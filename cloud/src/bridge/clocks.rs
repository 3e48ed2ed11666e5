//! Which record times are absurd, and what becomes of them. Pure.
//!
//! Order and repeats never go by time, but Kafka's time retention and time index do: one gateway in 2036 would pin a
//! partition's records for ever and answer every search by time, one in 1970 would have its data deleted at once. So a
//! time that cannot be true is replaced by the time the record came, and kept in header [`TIME_HEADER`]. Days offline are
//! no error: everything from 2020 on is taken as it is. The batch is sealed anew, which its other batches are not.

use bytes::Bytes;
use tributary_shared::record::{Header, Record};

/// Header with the time that a record said, ms since 1970, where it is not believed.
pub(super) const TIME_HEADER: &str = "edge.time";
/// 2020-01-01, ms: no edge of this program is older.
const OLDEST_MS: i64 = 1_577_836_800_000;

/// The rule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    ahead_max_ms: i64,
}

impl Clocks {
    /// With so many seconds that a clock may be ahead of ours.
    pub(super) fn new(ahead_max_s: u32) -> Self {
        Self { ahead_max_ms: i64::from(ahead_max_s) * 1000 }
    }

    /// This time cannot be true. Of a cloud whose own clock is before 2020 nothing is known.
    pub(super) fn is_absurd(self, time_ms: i64, now_ms: i64) -> bool {
        now_ms >= OLDEST_MS
            && (time_ms < OLDEST_MS || time_ms > now_ms.saturating_add(self.ahead_max_ms))
    }

    /// Gives a record with an absurd time the time it came.
    pub(super) fn clamp(self, record: &mut Record, now_ms: i64) {
        if !self.is_absurd(record.timestamp_ms, now_ms) {
            return;
        }
        let value = Some(Bytes::from(record.timestamp_ms.to_string()));
        record.headers.push(Header { name: TIME_HEADER.into(), value });
        record.timestamp_ms = now_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_that_cannot_be_true_are_replaced_and_they_are_kept() {
        const DAY: i64 = 86_400_000;
        let now = 1_790_000_000_000;
        let clocks = Clocks::new(86_400);
        for (time, absurd) in [
            (now, false),
            (now + DAY, false),
            (now + DAY + 1, true),
            (now - 400 * DAY, false),
            (OLDEST_MS, false),
            (OLDEST_MS - 1, true),
            (0, true),
            (i64::MIN, true),
            (i64::MAX, true),
        ] {
            let mut record = Record { timestamp_ms: time, ..Record::default() };
            clocks.clamp(&mut record, now);
            assert_eq!(record.timestamp_ms, if absurd { now } else { time });
            let kept = record.header(TIME_HEADER).map(|value| value.to_vec());
            assert_eq!(kept, absurd.then(|| time.to_string().into_bytes()));
        }
        assert!(!clocks.is_absurd(0, 0), "our own clock is no better");
    }
}
