//! Opening the data: as a single node that owns all of it, or as a member of the cluster that has it.
//!
//! Not here: what the parts are built from it (`app`).

use std::{sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinHandle, time::timeout};

use super::{AppError, Listeners};
use crate::{
    cluster::{
        Addresses, Cluster,
        member::{Me, Refused},
        settings::told,
        store::Objects,
        task::{self, Membership},
    },
    config::Config,
    engine::{self, Engine, Place, Sharing},
    log::{Lease, Log},
    peer::{self, Owners, Peers},
};

/// How long shards that are this node's from the start are waited for before it says that it is ready.
const FIRST_SHARDS: Duration = Duration::from_secs(20);

/// The opened data.
pub(super) struct Data {
    pub(super) log: Log,
    pub(super) cluster: Cluster,
    pub(super) peers: Peers,
    pub(super) member: Option<Joined>,
}

/// This node as a member.
pub(super) struct Joined {
    pub(super) membership: Membership,
    task: JoinHandle<Result<(), Refused>>,
}

impl Joined {
    /// Hands all shards over and leaves, within a time.
    pub(super) async fn leave(self, within: Duration) {
        self.membership.leave();
        match timeout(within, self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "did not leave the cluster well"),
            Ok(Err(error)) => tracing::warn!(%error, "did not leave the cluster well"),
            Err(_) => tracing::warn!("did not hand everything over in time; others will take it"),
        }
    }
}

/// Opens what `config.data` says, as what `config.cluster` says.
pub(super) async fn open(config: &Config, listeners: &Listeners) -> Result<Data, AppError> {
    let url = || config.data.clone();
    let member = config.cluster.is_member();
    let sharing = if member { Sharing::Cluster } else { Sharing::Alone };
    let opened = engine::open(&config.data, &config.engine, sharing).await;
    let (engine, place) = opened.map_err(|error| AppError::Engine { url: url(), error })?;
    if member {
        let place = place.ok_or_else(|| AppError::NotShared(url()))?;
        return join(config, listeners, engine, place).await;
    }
    if let Some(place) = place {
        let found = Objects::new(place).is_cluster().await;
        if found.map_err(|error| AppError::Look { url: url(), error })? {
            return Err(AppError::OfCluster(url()));
        }
    }
    let log = Log::open(engine, config.log.clone()).await;
    let log = log.map_err(|error| AppError::Log { url: url(), error })?;
    let cluster = Cluster::alone(Addresses::default(), log.shards());
    let peers = Peers::open(&peer::Settings::default(), cluster.clone())?;
    Ok(Data { log, cluster, peers, member: None })
}

async fn join(
    config: &Config,
    listeners: &Listeners,
    engine: Arc<dyn Engine>,
    place: Place,
) -> Result<Data, AppError> {
    let addresses = told(&config.cluster.advertise, &bound(listeners));
    let me = Me {
        name: config.cluster.node.clone(),
        cluster: config.cluster.name.clone(),
        id: uuid::Uuid::new_v4().to_string(),
        addresses: addresses.map_err(AppError::Advertise)?,
        shards: engine.shards(),
        random: uuid::Uuid::new_v4().as_u64_pair().0,
    };
    let lease = Lease::over();
    let settings = config.cluster.clone();
    let (membership, task) = task::join(me, settings, Objects::new(place), lease.clone()).await?;
    let cluster = membership.cluster();
    let peers = Peers::open(&config.peer, cluster.clone())?;
    let owners = Arc::new(Owners::new(peers.clone()));
    let log = Log::join(engine, config.log.clone(), owners, lease);
    membership.serve(Arc::new(log.clone()));
    let mut joined = Joined { membership, task };
    tokio::select! {
        _ = timeout(FIRST_SHARDS, all_here(&log, &cluster)) => {}
        error = lost(&log, Some(&mut joined)) => return Err(error),
    }
    Ok(Data { log, cluster, peers, member: Some(joined) })
}

/// Returns when all is open that the map gave this node at first.
async fn all_here(log: &Log, cluster: &Cluster) {
    let view = cluster.view();
    for shard in (0..log.shards()).map(engine::ShardId).filter(|shard| view.is_mine(*shard)) {
        drop(log.here(shard).await);
    }
}

/// Why this process cannot go on with its data. A member that loses a shard goes on.
pub(super) async fn lost(log: &Log, member: Option<&mut Joined>) -> AppError {
    let Some(member) = member else { return AppError::Lost(log.lost().await.0) };
    match (&mut member.task).await {
        Ok(Ok(())) => AppError::Part("the member task ended".into()),
        Ok(Err(refused)) => refused.into(),
        Err(error) => AppError::Part(error.to_string()),
    }
}

fn bound(listeners: &Listeners) -> Addresses {
    let address = |listener: &TcpListener| {
        listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
    };
    Addresses {
        kafka: address(&listeners.kafka),
        mqtt: address(&listeners.mqtt),
        amqp: address(&listeners.amqp),
        admin: address(&listeners.admin),
        est: listeners.est.as_ref().map(|(listener, _)| address(listener)).unwrap_or_default(),
        peer: listeners.peer.as_ref().map(address).unwrap_or_default(),
    }
}
