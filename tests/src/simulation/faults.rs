//! What happens to the simulated machines, between two steps.
//!
//! Holds: the calendar of what begins and what ends. In: a [`Plan`]. Change here: how a fault is done.
//! Not here: which ones, when (`plan`).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio_util::sync::CancellationToken;
use tributary_cloud::engine::{ShardId, memory::MemoryEngine};
use turmoil::Sim;

use super::{cloud, plan::Fault, world::World};

/// Files of a gateway's store that a copy of its disk has.
const FILES: [&str; 2] = ["edge.db", "edge.db-wal"];

/// How long the cloud may take to stop, ms.
const GRACE_MS: u64 = 300;

/// Something that ends what began.
#[derive(Debug, Clone, Copy)]
enum Then {
    StartEdge(usize),
    StartCloud,
    KillCloud { down: u64 },
    Heal(usize),
}

/// A copy of a disk, and what had been promised when it was made.
struct Image {
    folder: PathBuf,
    promises: BTreeMap<(usize, String), usize>,
}

/// The hand that does it.
pub(super) struct Hand {
    pub(super) world: World,
    pub(super) engine: MemoryEngine,
    /// Of the cloud's present life.
    pub(super) stop: std::rc::Rc<std::cell::RefCell<CancellationToken>>,
    folder: PathBuf,
    due: Vec<(u64, Then)>,
    images: BTreeMap<usize, Image>,
    /// Lines on which something is wrong.
    bad: BTreeMap<usize, bool>,
    cloud_up: bool,
    next: usize,
}

impl Hand {
    pub(super) fn new(
        world: World,
        engine: MemoryEngine,
        stop: std::rc::Rc<std::cell::RefCell<CancellationToken>>,
        folder: PathBuf,
    ) -> Self {
        let (due, images, bad) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { world, engine, stop, folder, due, images, bad, cloud_up: true, next: 0 }
    }

    /// Does what is due.
    pub(super) fn act(&mut self, sim: &mut Sim<'_>) {
        let now = self.world.lock().now_ms;
        while let Some(at) = self.due.iter().position(|(at, _)| *at <= now) {
            let (_, then) = self.due.remove(at);
            self.finish(sim, then);
        }
        loop {
            let fault = {
                let world = self.world.lock();
                world.plan.faults.get(self.next).filter(|(at, _)| *at <= now).copied()
            };
            let Some((_, fault)) = fault else { break };
            self.next += 1;
            self.begin(sim, fault, now);
        }
        self.learn_epochs();
        self.world.lock().look_at_marks();
    }

    /// Everything works again.
    pub(super) fn heal_all(&mut self, sim: &mut Sim<'_>) {
        for (_, then) in std::mem::take(&mut self.due) {
            if matches!(then, Then::Heal(_) | Then::StartEdge(_)) {
                self.finish(sim, then);
            }
        }
        self.engine.fail_writes(ShardId(0), 0);
        if !self.cloud_up || self.stop.borrow().is_cancelled() {
            self.crash_cloud(sim);
            self.finish(sim, Then::StartCloud);
        }
    }

    fn begin(&mut self, sim: &mut Sim<'_>, fault: Fault, now: u64) {
        self.world.event(format!("{fault:?}"));
        match fault {
            Fault::CrashEdge { edge, down, silent } => {
                self.crash_edge(sim, edge, now + down, silent);
            }
            Fault::CrashCloud { down } => {
                self.crash_cloud(sim);
                self.due.push((now + down, Then::StartCloud));
            }
            Fault::StopCloud { down } => {
                self.stop.borrow().cancel();
                self.due.push((now + GRACE_MS, Then::KillCloud { down }));
            }
            Fault::Partition { edge, last } => self.spoil(edge, now + last, |name| {
                sim.partition(name, cloud::NAME);
            }),
            Fault::OneWay { edge, up, last } => self.spoil(edge, now + last, |name| {
                let (from, to) = if up { (name, cloud::NAME) } else { (cloud::NAME, name) };
                sim.partition_oneway(from, to);
            }),
            Fault::Hold { edge, last } => self.spoil(edge, now + last, |name| {
                sim.hold(name, cloud::NAME);
            }),
            Fault::Lossy { edge, last } => self.spoil(edge, now + last, |name| {
                sim.set_link_fail_rate(name, cloud::NAME, 0.02);
            }),
            Fault::Cut { edge } => self.spoil(edge, now + 30, |name| {
                sim.partition(name, cloud::NAME);
            }),
            Fault::TakeImage { edge } => self.take_image(edge),
            Fault::RestoreImage { edge, down } => self.restore(sim, edge, now + down),
            Fault::Clone { edge } => self.clone_of(sim, edge),
            Fault::FailWrites { times } => self.engine.fail_writes(ShardId(0), times),
            Fault::FailDurability => self.engine.fail_durability(ShardId(0)),
        }
    }

    fn finish(&mut self, sim: &mut Sim<'_>, then: Then) {
        self.world.event(format!("{then:?}"));
        match then {
            Then::StartEdge(edge) => {
                let name = self.name(edge);
                if self.world.lock().hosts[edge].life.is_none() {
                    sim.bounce(name.as_str());
                }
            }
            Then::StartCloud if !self.cloud_up => {
                self.cloud_up = true;
                *self.stop.borrow_mut() = CancellationToken::new();
                sim.bounce(cloud::NAME);
            }
            Then::StartCloud => {}
            Then::KillCloud { down } => {
                if self.stop.borrow().is_cancelled() {
                    self.crash_cloud(sim);
                    let now = self.world.lock().now_ms;
                    self.due.push((now + down, Then::StartCloud));
                }
            }
            Then::Heal(edge) => {
                let name = self.name(edge);
                self.bad.remove(&edge);
                sim.set_link_fail_rate(name.as_str(), cloud::NAME, 0.0);
                sim.repair(name.as_str(), cloud::NAME);
                sim.repair_oneway(name.as_str(), cloud::NAME);
                sim.repair_oneway(cloud::NAME, name.as_str());
                sim.release(name.as_str(), cloud::NAME);
            }
        }
    }

    fn name(&self, edge: usize) -> String {
        self.world.lock().hosts[edge].name.clone()
    }

    /// One thing at a time is wrong with a line.
    fn spoil(&mut self, edge: usize, until: u64, how: impl FnOnce(&str)) {
        if self.bad.insert(edge, true).is_none() {
            how(&self.name(edge));
            self.due.push((until, Then::Heal(edge)));
        }
    }

    fn crash_edge(&mut self, sim: &mut Sim<'_>, edge: usize, until: u64, silent: bool) {
        if self.world.lock().hosts[edge].life.is_none() {
            return;
        }
        let name = self.name(edge);
        if silent {
            // Nobody is told: what the dying machine would say is lost, and the other end has to find out.
            self.spoil(edge, until, |name| sim.partition(name, cloud::NAME));
        }
        self.learn_epochs();
        sim.crash(name.as_str());
        self.learn_epochs();
        self.world.lock().hosts[edge].life = None;
        self.due.push((until, Then::StartEdge(edge)));
    }

    fn crash_cloud(&mut self, sim: &mut Sim<'_>) {
        self.cloud_up = false;
        sim.crash(cloud::NAME);
        self.engine.crash();
    }

    fn take_image(&mut self, edge: usize) {
        let (from, promises) = {
            let world = self.world.lock();
            (world.hosts[edge].folder.clone(), world.promises_of(edge))
        };
        let folder = self.folder.join(format!("image-{edge}"));
        copy_disk(&from, &folder);
        self.images.insert(edge, Image { folder, promises });
    }

    fn restore(&mut self, sim: &mut Sim<'_>, edge: usize, until: u64) {
        if !self.images.contains_key(&edge) {
            return;
        }
        self.crash_edge(sim, edge, until, false);
        let Some(image) = self.images.get(&edge) else { return };
        let mut world = self.world.lock();
        copy_disk(&image.folder, &world.hosts[edge].folder);
        world.destroy(edge, &image.promises);
    }

    fn clone_of(&mut self, sim: &mut Sim<'_>, edge: usize) {
        let name = {
            let mut world = self.world.lock();
            let from = world.hosts[edge].folder.clone();
            let clone = &mut world.hosts[edge + 1];
            copy_disk(&from, &clone.folder);
            clone.has_disk = true;
            clone.name.clone()
        };
        sim.bounce(name.as_str());
    }

    /// Which life made which epoch: the newest row of a lane is of the life that wrote last.
    fn learn_epochs(&self) {
        let mut world = self.world.lock();
        let world = &mut *world;
        for host in &world.hosts {
            let Some(number) = host.life else { continue };
            for (name, lane) in &mut world.lives[number].lanes {
                if lane.epoch.is_some() {
                    continue;
                }
                if let Ok(Some(epoch)) = newest_epoch(&host.folder.join(FILES[0]), name)
                    && !world.epochs.contains_key(&epoch)
                {
                    lane.epoch = Some(epoch);
                    world.epochs.insert(epoch, (number, name.clone()));
                }
            }
        }
    }
}

fn newest_epoch(file: &Path, lane: &str) -> rusqlite::Result<Option<i64>> {
    let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.query_row(
        "SELECT epoch FROM batch, lane WHERE name = ?1 AND id > number << 48 AND id < (number + 1) << 48
         ORDER BY id DESC LIMIT 1",
        [lane],
        |row| row.get(0),
    )
    .optional()
}

/// As a power cut would leave it: the file and its log, of one moment.
fn copy_disk(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for name in FILES {
        let target = to.join(name);
        let _missing = std::fs::remove_file(&target);
        if from.join(name).exists() {
            std::fs::copy(from.join(name), target).expect("a copy");
        }
    }
    let _missing = std::fs::remove_file(to.join("edge.db-shm"));
}
