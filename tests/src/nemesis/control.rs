//! Runs that must be caught: a store that lies. What the checker does not see here, it would not see anywhere.
//!
//! Change here: lies. Not here: faults that a cluster must bear (`fault`).

use std::time::Duration;

use super::{run::Run, site::Site, wire::Held};
use crate::s3::Faults;

/// What is wrong with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It acknowledges writes of the log and drops them: as an acknowledgement before anything is durable.
    Dropped,
    /// Conditional writes overwrite: nothing fences off an owner that has lost its shards.
    NoFence,
}

impl Lie {
    /// Tells it while everybody is at work, and lets nodes fall so that it matters.
    pub(super) fn tell(self, site: &mut Site, run: &Run) -> Result<(), String> {
        std::thread::sleep(Duration::from_secs(3));
        match self {
            Self::Dropped => {
                site.store(&Faults { forget: Some("/wal/".into()), ..Faults::default() });
                run.sleep_until(run.now_ms() + 1_500);
                (0..site.nodes.len()).for_each(|node| site.nodes[node].cloud.process.kill());
                site.heal();
            }
            Self::NoFence => {
                site.store(&Faults { overwrite: true, ..Faults::default() });
                Self::two_owners(site)?;
            }
        }
        for node in 0..site.nodes.len() {
            site.start_again(node)?;
        }
        run.sleep_until(run.now_ms() + 2_000);
        Ok(())
    }

    /// What the first node has written waits on its wire until another owns its shards; then it arrives. Those who replay the log
    /// after that replay what was overwritten.
    fn two_owners(site: &mut Site) -> Result<(), String> {
        site.nodes[0].store.hold(None, Held::ALL);
        if site.nodes.len() == 1 {
            // Nobody else takes over: it falls, and comes back over another wire.
            return Err("without a cluster there is nobody to take over".into());
        }
        std::thread::sleep(Duration::from_secs(8));
        site.nodes[0].store.heal();
        std::thread::sleep(Duration::from_secs(2));
        (0..site.nodes.len()).for_each(|node| site.nodes[node].cloud.process.kill());
        // A node does not start on a store that it finds without conditional writes.
        site.heal();
        Ok(())
    }
}
