//! What a seed stands for: how many gateways, how they are set up, and what happens to them when. Pure.
//!
//! In: a seed. Out: [`Plan`], the same for ever. Change here: what is tried, and how often.
//! Not here: doing it (`faults`).

use crate::random::Random;

/// Milliseconds of simulated time that one step takes.
pub(super) const STEP_MS: u64 = 5;

/// The set-up of one run.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) edges: Vec<EdgePlan>,
    pub(super) shards: u16,
    /// Some topics have streams of their own, so that batches are divided.
    pub(super) routes: bool,
    pub(super) receive_maximum: u16,
    pub(super) packet_bytes: u32,
    /// Longest wait of the cloud's store until a write is durable, ms.
    pub(super) flush_ms: u64,
    pub(super) latency_ms: (u64, u64),
    /// Devices publish and faults happen until here, ms.
    pub(super) faults_end: u64,
    /// In order of their times.
    pub(super) faults: Vec<(u64, Fault)>,
}

/// One gateway.
#[derive(Debug, Clone)]
pub(super) struct EdgePlan {
    pub(super) lanes: usize,
    pub(super) budget_bytes: u64,
    pub(super) window_batches: usize,
    /// Longest pause of its devices, ms.
    pub(super) pause_ms: u64,
    /// Longest time of a commit, ms.
    pub(super) commit_ms: usize,
    /// Longest payload.
    pub(super) payload_bytes: usize,
    /// Messages in a thousand that the cloud refuses for good.
    pub(super) poison: u64,
    /// Its second card, with the same id, is the next one in the list; it stays idle until it is cloned.
    pub(super) is_clone: bool,
}

/// What happens. `edge` counts in [`Plan::edges`]; times are in ms.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Its power goes; what was not committed is gone. `silent`: nobody hears of it, as if the line went first.
    CrashEdge { edge: usize, down: u64, silent: bool },
    /// The cloud dies; what was not durable is gone.
    CrashCloud { down: u64 },
    /// The cloud is asked to stop, then starts again.
    StopCloud { down: u64 },
    /// Nothing passes.
    Partition { edge: usize, last: u64 },
    /// Nothing passes one way.
    OneWay { edge: usize, up: bool, last: u64 },
    /// Everything is late.
    Hold { edge: usize, last: u64 },
    /// Packets are lost now and then, and the connection with them.
    Lossy { edge: usize, last: u64 },
    /// Connections are cut: what is under way is gone, and both ends find out by themselves.
    Cut { edge: usize },
    /// A copy of the disk is kept.
    TakeImage { edge: usize },
    /// The gateway goes on from the copy.
    RestoreImage { edge: usize, down: u64 },
    /// A second gateway is started from a copy of this one's disk.
    Clone { edge: usize },
    /// The next writes of the cloud's store fail.
    FailWrites { times: u32 },
    /// What the cloud's store was writing will never be durable.
    FailDurability,
}

/// What may happen to one seed; more than one kind of trouble at a time finds the most.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether one kind of trouble is on")]
struct Menu {
    images: bool,
    clones: bool,
    small_budgets: bool,
    poison: bool,
    store_fails: bool,
}

impl Plan {
    /// Of a seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let menu = Menu {
            images: random.percent(30),
            clones: random.percent(25),
            small_budgets: random.percent(35),
            poison: random.percent(25),
            store_fails: random.percent(50),
        };
        let mut edges = Vec::new();
        for _ in 0..=random.below(3) {
            let edge = EdgePlan::new(&mut random, menu);
            let clone = EdgePlan { is_clone: true, ..edge.clone() };
            edges.push(edge);
            if menu.clones && random.percent(60) {
                edges.push(clone);
            }
        }
        let faults_end = 2_500 + random.below(5_000) as u64;
        let low = 1 + random.below(15) as u64;
        let mut plan = Self {
            seed,
            shards: 1 + random.below(3) as u16,
            routes: random.percent(30),
            receive_maximum: random.pick(&[1, 4, 16, 64]),
            packet_bytes: random.pick(&[4096, 16_384, 1_114_112]),
            flush_ms: random.pick(&[1, 20, 200]),
            latency_ms: (low, low + random.below(100) as u64),
            faults_end,
            faults: Vec::new(),
            edges,
        };
        plan.draw_faults(&mut random, menu);
        plan
    }

    fn draw_faults(&mut self, random: &mut Random, menu: Menu) {
        let originals: Vec<_> =
            (0..self.edges.len()).filter(|&edge| !self.edges[edge].is_clone).collect();
        for _ in 0..2 + random.below(14) {
            let at = random.below(self.faults_end as usize) as u64;
            let edge = random.below(self.edges.len());
            let last = 50 + random.below(3_000) as u64;
            let original = random.pick(&originals);
            let fault = match random.below(20) {
                0..=3 => Fault::CrashEdge { edge, down: last / 2, silent: random.percent(50) },
                4..=5 => Fault::CrashCloud { down: last / 2 },
                6 => Fault::StopCloud { down: last / 2 },
                7..=8 => Fault::Partition { edge, last },
                9..=11 => Fault::OneWay { edge, up: random.percent(50), last },
                12 => Fault::Hold { edge, last },
                13 => Fault::Lossy { edge, last },
                14..=15 => Fault::Cut { edge },
                16..=17 if menu.images => {
                    self.faults.push((at, Fault::TakeImage { edge: original }));
                    let later = at + random.below((self.faults_end - at) as usize) as u64;
                    self.faults
                        .push((later, Fault::RestoreImage { edge: original, down: last / 4 }));
                    continue;
                }
                18 if menu.store_fails => Fault::FailWrites { times: 1 + random.below(3) as u32 },
                19 if menu.store_fails => Fault::FailDurability,
                _ => Fault::CrashEdge { edge, down: last / 4, silent: false },
            };
            self.faults.push((at, fault));
        }
        for edge in originals {
            if self.edges.get(edge + 1).is_some_and(|next| next.is_clone) {
                let at = random.below(self.faults_end as usize) as u64;
                self.faults.push((at, Fault::Clone { edge }));
            }
        }
        self.faults.sort_by_key(|(at, _)| *at);
    }
}

impl EdgePlan {
    fn new(random: &mut Random, menu: Menu) -> Self {
        let small = menu.small_budgets && random.percent(70);
        Self {
            lanes: 1 + random.below(2),
            budget_bytes: if small { 2_000 + random.below(20_000) as u64 } else { 1 << 30 },
            window_batches: random.pick(&[1, 2, 5, 16]),
            pause_ms: random.pick(&[30, 80, 200]),
            commit_ms: random.pick(&[2, 20, 100]),
            payload_bytes: random.pick(&[10, 100, 2_000]),
            poison: if menu.poison && random.percent(70) { 8 } else { 0 },
            is_clone: false,
        }
    }
}
