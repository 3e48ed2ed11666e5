//! Whether something keeps this machine's clock right. Looks for what systemd's time service leaves behind.
//!
//! In: the time, the service's files. Out: [`Status::clock_unsure`], which the store marks records with.
//! Change here: when a clock is not trusted. Not here: the mark (`store::group`), absurd times at the cloud (`cloud::bridge`).

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tributary_shared::clock::wall_ms;

use crate::status::Status;

/// 2026-01-01, ms: it is never earlier than that.
pub const WRITTEN_MS: i64 = 1_767_225_600_000;

/// How often it is looked at. A file is asked for, nothing more.
const LOOK: Duration = Duration::from_secs(5);

/// What the service says; `None`: it does not run here, and of others nothing is known.
pub fn synchronised() -> Option<bool> {
    let service = Path::new("/run/systemd/timesync");
    service.is_dir().then(|| service.join("synchronized").exists())
}

/// Times of this clock are not to be trusted: it cannot be right, or the service says that it has not been set yet.
fn is_unsure(wall_ms: i64, synchronised: Option<bool>) -> bool {
    wall_ms < WRITTEN_MS || synchronised == Some(false)
}

/// Looks once.
pub fn look(status: &Status) {
    let unsure = is_unsure(wall_ms(), synchronised());
    if status.clock_unsure.swap(unsure, Relaxed) != unsure {
        if unsure {
            tracing::warn!("the clock is not synchronised: messages say so in a header");
        } else {
            tracing::info!("the clock is synchronised");
        }
    }
}

/// Looks until `stop`.
pub async fn watch(status: Arc<Status>, stop: CancellationToken) {
    loop {
        tokio::select! { () = stop.cancelled() => return, () = sleep(LOOK) => look(&status) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_not_trusted_before_it_is_set_and_where_nothing_is_known_it_is() {
        for (wall_ms, synchronised, unsure) in [
            (WRITTEN_MS, Some(true), false),
            (WRITTEN_MS, None, false),
            (WRITTEN_MS, Some(false), true),
            (WRITTEN_MS - 1, None, true),
            (0, Some(true), true),
        ] {
            assert_eq!(is_unsure(wall_ms, synchronised), unsure, "{wall_ms} {synchronised:?}");
        }
    }
}
