//! What is done to a site, for how long, and how it is made good again.
//!
//! Change here: which faults there are. Not here: whether a run counts, and what is found (`mod`, `history`).

use std::time::Duration;

use super::{run::Run, site::Site, wire::Held};
use crate::{random::Random, s3::Faults};

/// Longer than a node that does not answer keeps its shards: 4.5 s, and what judging and taking over take.
const TAKEN_OVER: Duration = Duration::from_millis(6_500);

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL; it starts again at once or after its shards were taken over.
    Kill,
    /// SIGSTOP, and SIGCONT after its shards were taken over.
    Pause,
    /// SIGTERM: it hands its shards over and ends, and starts again.
    Drain,
    /// The store takes its time.
    Slow,
    /// The store answers a share of requests with 503.
    Unavailable,
    /// The store does what it is asked and does not answer.
    Unanswered,
    /// One node reaches neither store nor nodes.
    Alone,
    /// One node does not reach the store.
    NoStore,
    /// What one node says does not arrive, or what it is told; the other way is good.
    OneWay,
    /// Every node reaches only the next one; all reach the store.
    Ring,
    /// A node's clock is an hour or a day off, for a while.
    Clock,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::Pause,
        Self::Drain,
        Self::Slow,
        Self::Unavailable,
        Self::Unanswered,
        Self::Alone,
        Self::NoStore,
        Self::OneWay,
        Self::Ring,
        Self::Clock,
    ];

    /// What can be done to that site.
    pub(super) fn possible(site: &Site) -> Vec<Self> {
        let cluster = site.nodes.len() > 1;
        let can = |fault: &Self| match fault {
            Self::Ring | Self::Alone => cluster,
            Self::Clock => site.clocks,
            _ => true,
        };
        Self::ALL.into_iter().filter(can).collect()
    }

    /// After it writes are to resume within seconds, and how long that takes is told.
    pub(super) fn is_timed(self) -> bool {
        matches!(self, Self::Kill | Self::Drain)
    }

    /// As it is told.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Does it, waits, and makes it good. When it began, ms of the run; or what did not start again.
    pub(super) fn strike(
        self,
        site: &mut Site,
        run: &Run,
        random: &mut Random,
    ) -> Result<u64, String> {
        let victim = random.below(site.nodes.len());
        let mut began = run.now_ms();
        match self {
            Self::Kill => {
                site.nodes[victim].cloud.process.kill();
                began = run.now_ms();
                if random.percent(60) {
                    std::thread::sleep(TAKEN_OVER);
                }
                site.start_again(victim)?;
            }
            Self::Drain => {
                let ended = site.nodes[victim].cloud.process.stop();
                if ended != Some(0) {
                    return Err(format!("node {victim} ended with {ended:?} when told to stop"));
                }
                site.start_again(victim)?;
            }
            Self::Pause => {
                site.nodes[victim].cloud.process.signal("STOP");
                std::thread::sleep(TAKEN_OVER);
                site.nodes[victim].cloud.process.signal("CONT");
            }
            Self::Slow | Self::Unavailable | Self::Unanswered => {
                let mut faults = Faults::default();
                match self {
                    Self::Slow => faults.latency_ms = [50, 400],
                    Self::Unavailable => faults.unavailable_percent = 30,
                    _ => faults.lost_percent = 20,
                }
                site.store(&faults);
                std::thread::sleep(Duration::from_secs(4));
            }
            Self::Alone | Self::NoStore | Self::OneWay | Self::Ring => {
                self.part(site, victim, random);
                std::thread::sleep(TAKEN_OVER);
            }
            Self::Clock => {
                let seconds = random.pick(&[-86_400, -3_600, 3_600, 86_400]);
                site.move_clock(victim, seconds);
                std::thread::sleep(Duration::from_secs(3));
            }
        }
        site.heal();
        for fallen in site.fallen() {
            // A single node that was fenced off, or lost its store for too long, ends, and its supervisor starts it.
            site.start_again(fallen)?;
        }
        Ok(began)
    }

    fn part(self, site: &Site, victim: usize, random: &mut Random) {
        let others = || (0..site.nodes.len()).filter(move |other| *other != victim);
        match self {
            Self::Alone => {
                site.nodes[victim].store.hold(None, Held::ALL);
                for other in others() {
                    site.cut(victim, other, Held::ALL);
                    site.cut(other, victim, Held::ALL);
                }
            }
            Self::NoStore => site.nodes[victim].store.hold(None, Held::ALL),
            Self::OneWay => {
                let up = random.percent(50);
                let said = Held { up, down: !up };
                site.nodes[victim].store.hold(None, said);
                for other in others() {
                    site.cut(victim, other, said);
                    site.cut(other, victim, Held { up: !up, down: up });
                }
            }
            _ => {
                let count = site.nodes.len();
                for from in 0..count {
                    for to in (0..count).filter(|to| *to != from && *to != (from + 1) % count) {
                        site.cut(from, to, Held::ALL);
                    }
                }
            }
        }
    }
}
