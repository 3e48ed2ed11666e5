//! A simulated process: a member, its clock, what it has open.

use tributary_cloud::cluster::{
    Addresses, Settings,
    member::{Event, Me, Member},
};

pub(super) struct Process {
    pub(super) slot: usize,
    pub(super) member: Member,
    pub(super) alive: bool,
    pub(super) paused_until: u64,
    /// It does not reach the store until then.
    pub(super) cut_until: u64,
    /// Heard while it was paused.
    pub(super) inbox: Vec<Event>,
    /// By shard: open, and not known to be fenced.
    pub(super) serving: Vec<bool>,
    /// By its own clock.
    pub(super) lease: u64,
    pub(super) draining: bool,
    born: u64,
    /// Per cent of true time.
    rate: u64,
}

impl Process {
    pub(super) fn new(slot: usize, born: u64, random: u64, rate: u64, shards: u16) -> Self {
        let me = Me {
            name: format!("n{slot}"),
            cluster: "simulated".into(),
            id: format!("{random}"),
            addresses: Addresses::default(),
            shards,
            random,
        };
        Self {
            slot,
            member: Member::new(me, Settings::default()),
            alive: true,
            paused_until: 0,
            cut_until: 0,
            inbox: Vec::new(),
            serving: vec![false; usize::from(shards)],
            lease: 0,
            draining: false,
            born,
            rate,
        }
    }

    /// Its clock at a true moment; it began at some time of its own.
    pub(super) fn local(&self, now: u64) -> u64 {
        1_000 + (now - self.born) * self.rate / 100
    }

    pub(super) fn is_paused(&self, now: u64) -> bool {
        now < self.paused_until
    }

    pub(super) fn kill(&mut self) {
        self.alive = false;
        self.serving.fill(false);
        self.inbox.clear();
    }
}
