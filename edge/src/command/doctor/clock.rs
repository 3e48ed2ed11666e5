//! Is the time right, and does something keep it right?
//!
//! No decision of the edge needs the time, but message times, expiry, certificates and tokens do.

use tributary_shared::clock::wall_ms;

use super::Finding;
use crate::inventory::clock::{WRITTEN_MS, synchronised};

pub(super) fn check() -> Vec<Finding> {
    vec![finding(wall_ms(), synchronised())]
}

fn finding(wall_ms: i64, synchronised: Option<bool>) -> Finding {
    let keep =
        "let systemd-timesyncd or chrony keep the time: certificates, tokens and expiry need it";
    match (wall_ms < WRITTEN_MS, synchronised) {
        (true, _) => Finding::fail("clock: before 2026", keep),
        (_, Some(true)) => Finding::ok("clock: synchronised"),
        (_, Some(false)) => Finding::warn("clock: not synchronised", keep),
        (_, None) => Finding::warn("clock: nothing here says whether it is synchronised", keep),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::Level;

    #[test]
    fn a_gateway_that_believes_it_is_1970_fails_whatever_else_is_said() {
        for (wall_ms, synchronised, level) in [
            (0, Some(true), Level::Fail),
            (WRITTEN_MS, Some(true), Level::Ok),
            (WRITTEN_MS, Some(false), Level::Warn),
            (WRITTEN_MS, None, Level::Warn),
        ] {
            assert_eq!(finding(wall_ms, synchronised).level, level);
        }
    }
}
