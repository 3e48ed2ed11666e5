//! A simulated gateway: the real store and the real uplinks, and devices that publish to it.
//!
//! What the broker does in between is little here: it hands changes to the journal and acknowledges when they are committed.
//! In: a folder. Out: messages in the [`World`]. Change here: what devices do. Not here: the line (`dial`).

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    task::{JoinHandle, spawn_local},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tributary_edge::{
    lane,
    status::Status,
    store::{self, After, Journal, Prepared, Store},
    uplink::{self, Part, Share, Uplink},
};
use tributary_shared::{
    message::Message, mqtt::Qos, mqtt::write::Encoded, session::action::Change,
};

use super::{Control, dial::SimulatedDial, plan::EdgePlan, slow::Slow, world::World};
use crate::random::Random;

/// Lane names, the first ones are used.
pub(super) const LANES: [(&str, &str); 2] = [("normal", "#"), ("critical", "c/#")];

/// Longest time of a read, ms.
const READ_MS: usize = 4;

/// Groups of changes that devices have handed over and that are not committed.
const UNDER_WAY: usize = 8;

/// Runs one life of gateway number `host`; returns only if it cannot go on.
pub(super) async fn run(world: World, host: usize, control: Control) -> turmoil::Result {
    let (plan, seed, edge_id, folder, lives, has_disk) = {
        let world = world.lock();
        let this = &world.hosts[host];
        let plan = world.plan.edges[host].clone();
        (
            plan,
            world.plan.seed,
            this.edge_id.clone(),
            this.folder.clone(),
            this.lives,
            this.has_disk,
        )
    };
    if !has_disk {
        return Ok(());
    }
    let status = Arc::new(Status::default());
    let settings = store::Settings { ballast_bytes: 0, ..store::Settings::default() };
    let lanes = lanes(&plan);
    let after = After::Start;
    let opening = store::Plan { dir: folder, edge_id: edge_id.clone(), lanes, settings, after };
    let Prepared { store, journal, writing, reading, .. } = store::prepare(&opening, &status)?;
    let life = world.lock().begin_life(host, status);
    let mut random = Random::new(seed ^ (host as u64) << 32 ^ (lives as u64) << 48);
    let disk = Random::new(random.next());
    spawn_local(Slow::new(writing.run(), plan.commit_ms, disk.clone()));
    spawn_local(Slow::new(reading.run(), READ_MS, disk));
    let uplinks = start_uplinks(&world, (host, life), &edge_id, &plan, &store);
    let mut devices =
        Devices { world, life, plan, journal, random, control, under_way: VecDeque::new() };
    tokio::select! {
        why = devices.run(&store) => Err(why.into()),
        why = first_end(uplinks) => Err(why.into()),
    }
}

fn lanes(plan: &EdgePlan) -> Vec<lane::Settings> {
    // The first that matches wins: the one for everything is last.
    let lanes = LANES.iter().take(plan.lanes).rev();
    lanes
        .map(|(name, filter)| lane::Settings {
            name: (*name).to_owned(),
            filters: vec![(*filter).to_owned()],
            budget_bytes: plan.budget_bytes,
            ..lane::Settings::default()
        })
        .collect()
}

fn start_uplinks(
    world: &World,
    (host, life): (usize, usize),
    edge_id: &str,
    plan: &EdgePlan,
    store: &Store,
) -> Vec<JoinHandle<Result<(), store::Error>>> {
    let settings = uplink::Settings {
        window_batches: plan.window_batches,
        ack_timeout_ms: 1_500,
        connect_timeout_ms: 1_500,
        backoff_min_ms: 20,
        backoff_max_ms: 1_000,
        ..uplink::Settings::default()
    };
    let share = Share::new(settings.bytes_per_s);
    let uplink = |lane: &store::LaneHandle| {
        let dial = SimulatedDial {
            world: world.clone(),
            host,
            life,
            edge_id: edge_id.to_owned(),
            lane: lane.status.name.clone(),
            connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
        };
        let stop = CancellationToken::new();
        let part = Part { store: store.clone(), lane: lane.clone(), share: share.lane() };
        spawn_local(Uplink::new(part, dial, settings.clone(), stop).run())
    };
    store.lanes().iter().map(uplink).collect()
}

async fn first_end(uplinks: Vec<JoinHandle<Result<(), store::Error>>>) -> String {
    let (ended, ..) = futures::future::select_all(uplinks).await;
    format!("an uplink ended: {ended:?}")
}

struct Devices {
    world: World,
    life: usize,
    plan: EdgePlan,
    journal: Journal,
    random: Random,
    control: Control,
    /// Ticket and messages.
    under_way: VecDeque<(u64, Vec<u64>)>,
}

impl Devices {
    async fn run(&mut self, store: &Store) -> String {
        let mut progress = store.progress();
        let mut next = Instant::now();
        loop {
            let publishing = {
                let world = self.world.lock();
                world.now_ms < world.plan.faults_end
            };
            let room = publishing && self.under_way.len() < UNDER_WAY;
            tokio::select! {
                biased;
                changed = progress.changed() => {
                    let (committed, failed) = {
                        let progress = progress.borrow_and_update();
                        (progress.committed, progress.failed.clone())
                    };
                    self.committed(committed);
                    if changed.is_err() || failed.is_some() {
                        return format!("the store ended: {failed:?}");
                    }
                }
                () = sleep_until(next), if room => {
                    if let Err(error) = self.publish().await {
                        return format!("the store takes nothing: {error}");
                    }
                    let pause = 1 + self.random.below(self.plan.pause_ms as usize) as u64;
                    next = Instant::now() + Duration::from_millis(pause);
                }
            }
        }
    }

    async fn publish(&mut self) -> Result<(), store::Error> {
        let count = 1 + self.random.below(4);
        let (changes, numbers): (Vec<_>, Vec<_>) = (0..count).map(|_| self.message()).unzip();
        if self.control == Control::EarlyAck {
            numbers.iter().for_each(|number| self.world.lock().acked(*number));
        }
        let ticket = self.journal.apply(changes).await?;
        self.under_way.push_back((ticket, numbers));
        Ok(())
    }

    fn message(&mut self) -> (Change, u64) {
        let critical = self.plan.lanes > 1 && self.random.percent(30);
        let poison = self.random.below(1000) < self.plan.poison as usize;
        let lane = LANES[usize::from(critical)].0;
        let number = self.world.lock().publish(self.life, lane, poison);
        let topic = match (critical, self.random.below(3)) {
            // A filter's character: stored here, illegal there.
            _ if poison => format!("{}/+", if critical { "c" } else { "n" }),
            (true, n) => format!("c/{n}"),
            (false, n) => format!("n/{n}"),
        };
        let mut payload = number.to_string().into_bytes();
        payload.push(b' ');
        // Half noise, half spaces, so that compression has its part.
        for _ in 0..self.random.below(self.plan.payload_bytes) {
            payload.push(if self.random.percent(50) { b' ' } else { self.random.next() as u8 });
        }
        // Clocks jump; nothing may depend on them.
        let jump = self.random.pick(&[0, 0, -315_360_000_000_i64, 315_360_000_000]);
        let received_ms = (1_700_000_000_000 + jump + number as i64).max(0);
        let message = Arc::new(Message {
            topic: topic.into(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: tributary_shared::mqtt::packet::PublishProperties::default(),
            publisher: None,
            received_ms,
            expires_ms: None,
            place: None,
            encoded: Encoded::default(),
        });
        (Change::Message { message, queued: Vec::new(), stored: None }, number)
    }

    fn committed(&mut self, ticket: u64) {
        while let Some((_, numbers)) = self.under_way.pop_front_if(|(of, _)| *of <= ticket) {
            if self.control != Control::EarlyAck {
                let mut world = self.world.lock();
                numbers.iter().for_each(|number| world.acked(*number));
            }
        }
    }
}
