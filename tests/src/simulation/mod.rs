//! Gateways and a cloud in one thread, in simulated time, on a simulated network: what a seed does, it does again.
//!
//! ```text
//! Plan::new(seed) -> turmoil hosts: cloud (bridge + log + engine in memory), gateways (store + uplinks)
//! step 5 ms at a time: faults -> world (what was promised) ... faults end -> everything drains -> verdict
//! ```
//! The state machines are those of the programs: `edge::store`'s two halves and `edge::uplink` run as tasks, `Bridge::serve`
//! takes a simulated stream. Only the line (`dial`), the devices and the clock are the simulation's own.
//! In: a seed. Out: [`Outcome`]. Change here: how a run goes. Not here: what happens in it (`plan`), the same numbers for the
//! same seed (`bin/simulate.rs` takes the place of the system's clock and randomness).

mod cloud;
mod dial;
mod edge;
mod faults;
mod plan;
mod slow;
mod verdict;
mod world;
mod wrong;

use std::{cell::RefCell, collections::BTreeMap, path::Path, rc::Rc, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tributary_cloud::engine::memory::MemoryEngine;
use tributary_edge::status::Status;
use turmoil::Sim;

pub use self::verdict::Verdict;
use self::{
    faults::Hand,
    plan::{Plan, STEP_MS},
    world::{Host, World},
    wrong::Shelf,
};

/// After the faults, everything must have arrived within so much simulated time, ms.
const DRAIN_MS: u64 = 180_000;

/// What is wrong on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Nothing: the programs as they are.
    None,
    /// Nothing, but the cloud is the simple one that the wrong ones are made of.
    Simple,
    /// The cloud tells duplicates by one number a lane, whatever the epoch.
    HighWater,
    /// The cloud takes what comes after a gap.
    NoGapCheck,
    /// The gateway acknowledges before the commit.
    EarlyAck,
}

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// Counts.
    pub verdict: Verdict,
    /// What must never happen, and did, in the order it was found.
    pub faults: Vec<String>,
    /// Of all events: equal for equal runs.
    pub hash: u64,
    /// Simulated ms.
    pub simulated_ms: u64,
    /// The last things that happened.
    pub events: Vec<String>,
    /// What was to happen.
    pub plan: String,
}

impl Outcome {
    /// Every promise was kept.
    pub fn is_good(&self) -> bool {
        self.verdict.is_good() && self.faults.is_empty()
    }
}

/// Runs a seed. `folder`: an empty one, best in memory.
pub fn run(seed: u64, control: Control, folder: &Path) -> Outcome {
    let plan = Plan::new(seed);
    let world = World::new(plan.clone(), hosts(&plan, folder));
    let engine = MemoryEngine::manual(plan.shards);
    let shelf = Shelf::default();
    let stop = Rc::new(RefCell::new(CancellationToken::new()));
    let mut sim = build(&plan);
    add_cloud(&mut sim, &world, &engine, &shelf, control, &stop);
    for host in 0..plan.edges.len() {
        let name = world.lock().hosts[host].name.clone();
        let world = world.clone();
        sim.host(name.as_str(), move || edge::run(world.clone(), host, control));
    }
    let hand = Hand::new(world.clone(), engine.clone(), stop, folder.to_owned());
    drive(&mut sim, &world, hand, &plan);
    drop(sim);
    let (stored, marks) = match control {
        Control::None | Control::EarlyAck => read_cloud(&world, &engine),
        _ => shelf.stored(),
    };
    let mut world = world.lock();
    let verdict = verdict::judge(&mut world, &stored, &marks);
    Outcome {
        verdict,
        faults: std::mem::take(&mut world.faults),
        hash: world.hash(),
        simulated_ms: world.now_ms,
        events: world.last_events(),
        plan: format!("{plan:?}"),
    }
}

fn hosts(plan: &Plan, folder: &Path) -> Vec<Host> {
    let mut edge_id = String::new();
    let host = |(number, edge): (usize, &plan::EdgePlan)| {
        if !edge.is_clone {
            edge_id = format!("gw{number}");
        }
        let name = format!("host{number}");
        Host {
            folder: folder.join(&name),
            name,
            edge_id: edge_id.clone(),
            has_disk: !edge.is_clone,
            life: None,
            lives: 0,
            status: Arc::new(Status::default()),
            marks: BTreeMap::new(),
        }
    };
    plan.edges.iter().enumerate().map(host).collect()
}

fn build<'a>(plan: &Plan) -> Sim<'a> {
    let (low, high) = plan.latency_ms;
    turmoil::Builder::new()
        .rng_seed(plan.seed)
        .tick_duration(Duration::from_millis(STEP_MS))
        .min_message_latency(Duration::from_millis(low))
        .max_message_latency(Duration::from_millis(high))
        .simulation_duration(Duration::MAX)
        .tcp_capacity(4096)
        .enable_random_order()
        .build()
}

fn add_cloud(
    sim: &mut Sim<'_>,
    world: &World,
    engine: &MemoryEngine,
    shelf: &Shelf,
    control: Control,
    stop: &Rc<RefCell<CancellationToken>>,
) {
    let (world, engine, shelf, stop) = (world.clone(), engine.clone(), shelf.clone(), stop.clone());
    let lives = std::cell::Cell::new(0);
    sim.host(cloud::NAME, move || {
        lives.set(lives.get() + 1);
        let (world, engine, shelf) = (world.clone(), engine.clone(), shelf.clone());
        let (stop, life) = (stop.borrow().clone(), lives.get());
        async move {
            match control {
                Control::None | Control::EarlyAck => cloud::run(world, engine, stop, life).await,
                _ => wrong::run(world, shelf, control).await,
            }
        }
    });
}

/// Until everything has arrived, or it has taken too long.
fn drive(sim: &mut Sim<'_>, world: &World, mut hand: Hand, plan: &Plan) {
    let mut healed = false;
    loop {
        if let Err(error) = sim.step() {
            world.fault(format!("a machine stopped: {error}"));
            return;
        }
        let now = {
            let mut world = world.lock();
            world.now_ms += STEP_MS;
            world.now_ms
        };
        hand.act(sim);
        if now >= plan.faults_end && !healed {
            healed = true;
            world.event("faults end");
            hand.heal_all(sim);
        }
        // Not before the marks of what was just acknowledged have been seen.
        if healed && now.is_multiple_of(200) && world.lock().is_drained() {
            return;
        }
        if now > plan.faults_end + DRAIN_MS {
            let mut world = world.lock();
            let left = |host: &Host| {
                let lanes = host.status.lanes();
                let lane = |lane: &Arc<tributary_edge::status::LaneStatus>| {
                    format!("{} {} batches", lane.name, lane.batches.get())
                };
                format!("{}: {:?}", host.name, lanes.iter().map(lane).collect::<Vec<_>>())
            };
            let left: Vec<_> = world.hosts.iter().map(left).collect();
            world.fault(&format!("not drained: {left:?}"));
            return;
        }
    }
}

fn read_cloud(world: &World, engine: &MemoryEngine) -> (Vec<verdict::Stored>, Vec<(i64, u64)>) {
    let mut edges: Vec<_> = world.lock().hosts.iter().map(|host| host.edge_id.clone()).collect();
    edges.dedup();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let found = runtime.block_on(async {
        let reading = cloud::stored(engine, &edges);
        let flushing = async {
            loop {
                engine.flush();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { found = reading => found, () = flushing => Err("never".to_owned()) }
    });
    found.unwrap_or_else(|error| {
        world.fault(format!("the cloud cannot be read: {error}"));
        (Vec::new(), Vec::new())
    })
}
