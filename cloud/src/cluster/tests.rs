//! Members over one object store in memory, in tokio's paused time; shards are only counted.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use slatedb::object_store::{memory::InMemory, path::Path};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};

use super::{
    Addresses, NodeId, Settings, View,
    member::{Me, Refused},
    store::Objects,
    task::{Membership, Shards, join},
};
use crate::{
    engine::{Place, ShardId},
    log::{Lease, LogError},
};

const SHARDS: u16 = 4;

#[derive(Default)]
struct Held(watch::Sender<BTreeSet<u16>>);

#[async_trait]
impl Shards for Held {
    async fn take(&self, shard: ShardId) -> Result<(), LogError> {
        self.0.send_modify(|held| {
            held.insert(shard.0);
        });
        Ok(())
    }
    async fn release(&self, shard: ShardId) {
        self.0.send_modify(|held| {
            held.remove(&shard.0);
        });
    }
    async fn lost(&self) -> ShardId {
        std::future::pending().await
    }
}

impl Held {
    async fn are(&self, count: usize) {
        self.0.subscribe().wait_for(|held| held.len() == count).await.unwrap();
    }
}

struct World(Arc<InMemory>);

type Ended = JoinHandle<Result<(), Refused>>;

impl World {
    fn new() -> Self {
        Self(Arc::default())
    }

    async fn join(
        &self,
        name: &str,
        random: u64,
    ) -> Result<(Membership, Arc<Held>, Ended), Refused> {
        self.join_as(Me {
            name: name.into(),
            cluster: "c".into(),
            id: format!("id-{random}"),
            addresses: Addresses::default(),
            shards: SHARDS,
            random,
        })
        .await
    }

    async fn join_as(&self, me: Me) -> Result<(Membership, Arc<Held>, Ended), Refused> {
        let place = Place {
            objects: Arc::<InMemory>::clone(&self.0),
            prefix: Path::default(),
            url: "memory".into(),
        };
        let (settings, objects) = (Settings::default(), Objects::new(place));
        let (membership, task) = join(me, settings, objects, Lease::over()).await?;
        let held = Arc::new(Held::default());
        membership.serve(Arc::<Held>::clone(&held));
        Ok((membership, held, task))
    }
}

#[tokio::test(start_paused = true)]
async fn shards_are_shared_and_come_back_when_a_node_leaves() {
    let world = World::new();
    let (first, a, _ended) = world.join("n1", 1).await.unwrap();
    a.are(4).await;
    let (second, b, ended) = world.join("n2", 2).await.unwrap();
    b.are(2).await;
    a.are(2).await;
    assert_eq!(first.cluster().view().me, NodeId(1));
    assert_eq!(second.cluster().view().me, NodeId(2));
    assert_eq!(second.cluster().view().nodes.len(), 2);
    let mut seen = second.cluster().changes();
    second.leave();
    // Before it goes it shows its own clients where its shards are now; none of them hears of both at once.
    let all_gone = |view: &Arc<View>| view.shards.iter().all(|s| s.owner == Some(NodeId(1)));
    assert!(seen.wait_for(all_gone).await.unwrap().nodes.contains_key(&NodeId(2)));
    let mut others = first.cluster().changes();
    assert!(others.wait_for(all_gone).await.unwrap().nodes.contains_key(&NodeId(2)));
    ended.await.unwrap().unwrap();
    a.are(4).await;
    assert!(b.0.borrow().is_empty());
    // It comes back at once, under its number; what has moved a moment ago moves again only when all is calm.
    let (second, b, _ended) = world.join("n2", 3).await.unwrap();
    let back = Instant::now();
    b.are(2).await;
    let calm = Duration::from_millis(Settings::default().settle_ms);
    assert!(back.elapsed() + Duration::from_millis(300) >= calm, "{:?}", back.elapsed());
    assert_eq!(second.cluster().view().me, NodeId(2));
}

#[tokio::test(start_paused = true)]
async fn a_dead_nodes_shards_are_taken_over_when_its_lease_is_over() {
    let world = World::new();
    let (first, a, ended_a) = world.join("n1", 1).await.unwrap();
    let (_second, b, _ended) = world.join("n2", 2).await.unwrap();
    a.are(2).await;
    b.are(2).await;
    ended_a.abort();
    let died = Instant::now();
    b.are(4).await;
    let took = died.elapsed();
    assert!(!first.is_sure(), "it could still serve");
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_runs_is_refused_and_one_that_was_killed_is_taken_over() {
    let world = World::new();
    let (_first, a, ended) = world.join("n1", 1).await.unwrap();
    a.are(4).await;
    let refused = world.join("n1", 2).await.map(drop).unwrap_err();
    assert_eq!(refused, Refused::Running("n1".into()));
    a.are(4).await;
    ended.abort();
    let died = Instant::now();
    let (again, b, _ended) = world.join("n1", 3).await.unwrap();
    b.are(4).await;
    assert_eq!(again.cluster().view().me, NodeId(1));
    assert!(died.elapsed() < Duration::from_millis(4_500), "{:?}", died.elapsed());
}

#[tokio::test(start_paused = true)]
async fn another_clusters_data_is_refused() {
    let world = World::new();
    let (_first, a, _ended) = world.join("n1", 1).await.unwrap();
    a.are(4).await;
    let me = |cluster: &str, shards| Me {
        name: "n2".into(),
        cluster: cluster.into(),
        id: String::new(),
        addresses: Addresses::default(),
        shards,
        random: 5,
    };
    let refused = world.join_as(me("d", SHARDS)).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("cluster `c`"), "{refused}");
    let refused = world.join_as(me("c", 8)).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("4 shards"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn ten_nodes_that_start_at_once_share_the_shards() {
    let world = World::new();
    let joining = (0..10).map(|n| {
        let world = &world;
        async move { world.join(&format!("n{n}"), 100 + n).await.unwrap() }
    });
    let all = futures::future::join_all(joining).await;
    let held = || all.iter().map(|(_, held, _)| held.0.borrow().len()).sum::<usize>();
    while held() != usize::from(SHARDS) || all.iter().any(|(_, held, _)| held.0.borrow().len() > 1)
    {
        sleep(Duration::from_millis(100)).await;
    }
    let ids: BTreeSet<_> = all.iter().map(|(member, ..)| member.cluster().view().me).collect();
    assert_eq!(ids.len(), 10);
}
