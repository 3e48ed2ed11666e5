//! The task that does what a member decides: asks the store, takes and releases shards, moves the lease, shows the map.
//!
//! In: [`join`] at the start, [`Membership::serve`] once there is something that can hold shards. Out: [`Cluster`] for the
//! heads. Change here: clocks, tasks, log lines. Not here: any decision (`member`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    Cluster, Settings,
    map::Map,
    member::{Action, Ask, Event, Me, Member, Ms, Refused},
    store::Objects,
    view::View,
};
use crate::{
    engine::ShardId,
    log::{Lease, Log, LogError},
};

/// Time that passes is told this often.
const TICK: Duration = Duration::from_millis(20);

/// What holds shards.
#[async_trait]
pub trait Shards: Send + Sync + 'static {
    /// Opens a shard and serves it while the lease lasts.
    async fn take(&self, shard: ShardId) -> Result<(), LogError>;
    /// Stops serving a shard at once, then lets go of it.
    async fn release(&self, shard: ShardId);
    /// The next shard that somebody else opened, or whose store failed.
    async fn lost(&self) -> ShardId;
}

#[async_trait]
impl Shards for Log {
    async fn take(&self, shard: ShardId) -> Result<(), LogError> {
        Self::take(self, shard).await
    }

    async fn release(&self, shard: ShardId) {
        if let Err(error) = Self::release(self, shard).await {
            // Nothing of it is served here in any case; who opens it next fences what is left.
            tracing::warn!(shard = shard.0, %error, "a shard did not close well");
        }
    }

    async fn lost(&self) -> ShardId {
        Self::lost(self).await
    }
}

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Shards opened.
    pub taken: AtomicU64,
    /// Shards given to others.
    pub released: AtomicU64,
    /// Shards that others opened.
    pub lost: AtomicU64,
    /// Requests of the store that got no answer, or an error.
    pub unanswered: AtomicU64,
    /// Nodes whose heartbeats this one ended.
    pub ended: AtomicU64,
}

/// This node in its cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Membership {
    cluster: Cluster,
    map: watch::Receiver<Arc<Map>>,
    lease: Lease,
    shards: watch::Sender<Option<Holder>>,
    counters: Arc<Counters>,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Holder(Arc<dyn Shards>);

impl std::fmt::Debug for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Holder")
    }
}

impl Membership {
    /// What heads ask.
    pub fn cluster(&self) -> Cluster {
        self.cluster.clone()
    }

    /// The newest map known.
    pub fn map(&self) -> Arc<Map> {
        self.map.borrow().clone()
    }

    /// Whether this node may serve: its heartbeats landed.
    pub fn is_sure(&self) -> bool {
        self.lease.is_valid()
    }

    /// Numbers.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// From now on shards are held here.
    pub fn serve(&self, shards: Arc<dyn Shards>) {
        self.shards.send_replace(Some(Holder(shards)));
    }

    /// Hands everything over; the task ends when that is done.
    pub fn leave(&self) {
        self.stop.cancel();
    }
}

/// Joins the cluster at `objects` and moves `lease` from now on; returns when this node is a member. The task ends with why it is none any more.
pub async fn join(
    me: Me,
    settings: Settings,
    objects: Objects,
    lease: Lease,
) -> Result<(Membership, JoinHandle<Result<(), Refused>>), Refused> {
    let shards = watch::Sender::new(None);
    let counters = Arc::new(Counters::default());
    let stop = CancellationToken::new();
    let (shown, mut seen) = watch::channel(None);
    let running = Running {
        member: Member::new(me, settings),
        objects,
        started: Instant::now(),
        shards: shards.subscribe(),
        lease: lease.clone(),
        counters: Arc::clone(&counters),
        shown,
        views: None,
        stop: stop.clone(),
        doing: JoinSet::new(),
    };
    let task = tokio::spawn(running.run());
    let found = seen.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
    let Some((view, map)) = found else {
        // Only the task's end takes the sender away.
        let ended = task.await.unwrap_or_else(|error| Err(broken(&error)));
        let early = || Refused::Unreadable("stopped before it joined".into());
        return Err(ended.err().unwrap_or_else(early));
    };
    let cluster = Cluster::new(view);
    Ok((Membership { cluster, map, lease, shards, counters, stop }, task))
}

fn broken(error: &tokio::task::JoinError) -> Refused {
    Refused::Unreadable(format!("the member task failed: {error}"))
}

type Shown = (watch::Sender<Arc<View>>, watch::Sender<Arc<Map>>);
type Watched = (watch::Receiver<Arc<View>>, watch::Receiver<Arc<Map>>);

struct Running {
    member: Member,
    objects: Objects,
    started: Instant,
    shards: watch::Receiver<Option<Holder>>,
    lease: Lease,
    counters: Arc<Counters>,
    /// Filled when this node is a member.
    shown: watch::Sender<Option<Watched>>,
    views: Option<Shown>,
    stop: CancellationToken,
    /// What is under way; its end is an event.
    doing: JoinSet<Event>,
}

impl Running {
    async fn run(mut self) -> Result<(), Refused> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = false;
        let losses = self.shards.clone();
        let lost = next_lost(losses.clone());
        tokio::pin!(lost);
        let ended = loop {
            let event = tokio::select! {
                biased;
                () = self.stop.cancelled(), if !told => {
                    told = true;
                    Event::Drain
                }
                shard = &mut lost => {
                    lost.set(next_lost(losses.clone()));
                    self.counters.lost.fetch_add(1, Relaxed);
                    tracing::warn!(shard = shard.0, "another node has opened a shard that was here");
                    Event::Lost(shard)
                }
                Some(done) = self.doing.join_next() => match done {
                    Ok(event) => event,
                    Err(error) => break Err(broken(&error)),
                },
                _ = tick.tick() => Event::Tick,
            };
            let now = self.now();
            let actions = self.member.decide(event, now);
            if let Some(end) = actions.into_iter().find_map(|action| self.act(action, now)) {
                break end;
            }
        };
        // Whatever comes now, it is not served here.
        self.lease.extend(Instant::now());
        ended
    }

    fn now(&self) -> Ms {
        self.started.elapsed().as_millis() as Ms
    }

    fn act(&mut self, action: Action, now: Ms) -> Option<Result<(), Refused>> {
        match action {
            Action::Ask(ask) => self.ask(ask, now),
            Action::Take(shard) => self.take(shard),
            Action::Release(shard) => self.release(shard),
            Action::Lease(until) => {
                self.lease.extend(self.started + Duration::from_millis(until));
            }
            Action::Show => {}
            Action::End(end) => return Some(end),
        }
        self.show();
        None
    }

    fn ask(&mut self, ask: Ask, began: Ms) {
        match &ask {
            Ask::CreateBeat(life, _, beat) if beat.ended_by.is_some() => {
                self.counters.ended.fetch_add(1, Relaxed);
                tracing::warn!(node = %life, "a node is silent: its shards are given to others");
            }
            Ask::CreateMap(map) => tracing::debug!(version = map.version, "changing the map"),
            _ => {}
        }
        let (objects, counters) = (self.objects.clone(), Arc::clone(&self.counters));
        self.doing.spawn(async move {
            let answer = objects.answer(&ask).await;
            if answer == super::member::Answer::Failed {
                counters.unanswered.fetch_add(1, Relaxed);
            }
            Event::Answered { began, ask, answer }
        });
    }

    fn take(&mut self, shard: ShardId) {
        let (shards, counters) = (self.shards.clone(), Arc::clone(&self.counters));
        self.doing.spawn(async move {
            let Some(holder) = holder(shards).await else { return Event::NotTaken(shard) };
            let begun = Instant::now();
            match holder.0.take(shard).await {
                Ok(()) => {
                    counters.taken.fetch_add(1, Relaxed);
                    let ms = begun.elapsed().as_millis() as u64;
                    tracing::info!(shard = shard.0, ms, "a shard is served here");
                    Event::Taken(shard)
                }
                Err(error) => {
                    tracing::warn!(shard = shard.0, %error, "a shard could not be opened; trying again");
                    Event::NotTaken(shard)
                }
            }
        });
    }

    fn release(&mut self, shard: ShardId) {
        let (shards, counters) = (self.shards.clone(), Arc::clone(&self.counters));
        self.doing.spawn(async move {
            let begun = Instant::now();
            if let Some(holder) = holder(shards).await {
                holder.0.release(shard).await;
            }
            counters.released.fetch_add(1, Relaxed);
            let ms = begun.elapsed().as_millis() as u64;
            tracing::info!(shard = shard.0, ms, "a shard is not served here any more");
            Event::Released(shard)
        });
    }

    /// Tells what is new of the map.
    fn show(&mut self) {
        let (Some(map), Some(view)) = (self.member.map(), self.member.view()) else { return };
        if let Some((views, maps)) = &self.views {
            // Heads need not wake when nothing they see has changed.
            views.send_if_modified(|seen| {
                let new = **seen != view;
                if new {
                    *seen = Arc::new(view);
                }
                new
            });
            if maps.borrow().version != map.version {
                maps.send_replace(Arc::new(map.clone()));
                let (version, nodes) = (map.version, map.living().count());
                tracing::info!(version, nodes, "the cluster's map has changed");
            }
            return;
        }
        let (views, view) = watch::channel(Arc::new(view));
        let (maps, map) = watch::channel(Arc::new(map.clone()));
        self.views = Some((views, maps));
        self.shown.send_replace(Some((view, map)));
    }
}

/// Waits until shards can be held here.
async fn holder(mut shards: watch::Receiver<Option<Holder>>) -> Option<Holder> {
    shards.wait_for(Option::is_some).await.ok().and_then(|holder| holder.clone())
}

async fn next_lost(shards: watch::Receiver<Option<Holder>>) -> ShardId {
    match holder(shards).await {
        Some(holder) => holder.0.lost().await,
        None => std::future::pending().await,
    }
}
