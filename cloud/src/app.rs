//! Builds the parts, joins their handles, owns start and stop order.
//!
//! ```text
//! start: listeners bound -> log open -> heads -> "ready"        stop: heads -> log closed
//! ```
//! Listeners are bound before the data is opened: a second cloud on the same ports must not fence the first.
//! Not here: settings (`config`), signals (`main`), what the parts do.

mod between;
mod data;

use std::{
    io::Write as _,
    net::{SocketAddr, ToSocketAddrs as _},
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    net::{
        self, BindError, Exposed, Exposure, Gate, Listener, check_exposure,
        listener::Bound,
        tls::{Tls, TlsError},
    },
    tasks,
};

use self::{between::Between, data::Data};
use crate::{
    admin, amqp,
    bridge::Bridge,
    cluster::{Cluster, member::Refused, task::Membership},
    config::{Config, Listen},
    engine::EngineError,
    enrol::{Enrol, EnrolError, est},
    group::Groups,
    kafka,
    listen::{self, Door, DoorError},
    log::{Log, LogError},
    mqtt,
    peer::{PeerError, Peers},
    route::{RouteError, Routes, Routing},
    status::Status,
};

/// For the heads to say goodbye to their clients.
const HEADS_STOP: Duration = Duration::from_millis(2_500);
/// How long a member waits to hear of the streams before it says that it is ready.
const STREAMS: Duration = Duration::from_secs(10);
/// For the log to make durable what it has taken.
const LOG_STOP: Duration = Duration::from_secs(2);

/// Why the cloud does not run (any more). One sentence each.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AppError {
    #[error("`{setting}` = `{text}` is not an address: {error}")]
    Address { setting: &'static str, text: String, error: std::io::Error },
    #[error("`{0}` = `{1}` has no address")]
    NoAddress(&'static str, String),
    #[error(transparent)]
    Exposed(#[from] Exposed),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("enrolment: {0}")]
    Enrol(#[from] EnrolError),
    #[error("`listen.est` is set and `enrol.ca` is not: there is no authority to enrol with")]
    NoAuthority,
    #[error("data at {url} cannot be opened: {error}")]
    Engine { url: String, error: EngineError },
    #[error("data at {url} cannot be opened: {error}")]
    Log { url: String, error: LogError },
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("data at {url} cannot be looked at: {error}")]
    Look { url: String, error: String },
    #[error(
        "the data at {0} is a cluster's: start this node as a member of it with --node NAME, or use another --data"
    )]
    OfCluster(String),
    #[error(
        "`--node` makes this process a member of a cluster, and no other can reach {0}: use file:///path or s3://bucket/prefix"
    )]
    NotShared(String),
    #[error("{0}")]
    Advertise(String),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Cluster(#[from] Refused),
    #[error("stopped because {0}")]
    Part(String),
    #[error("stopped because another process took over shard {0} of the same data")]
    Lost(u16),
    #[error("the log did not close in time: what was acknowledged is safe")]
    Close,
}

struct Listeners {
    mqtt: TcpListener,
    edges: Vec<(Listener, Bound)>,
    est: Option<(TcpListener, Arc<Tls>)>,
    kafka: TcpListener,
    amqp: TcpListener,
    admin: TcpListener,
    /// Only of a member of a cluster.
    peer: Option<TcpListener>,
}

/// What every head is built from.
struct Parts {
    log: Log,
    cluster: Cluster,
    peers: Peers,
    membership: Option<Membership>,
    enrol: Enrol,
    routing: Routing,
    status: Status,
    /// No new clients but Kafka's, who are told where to go: they would be on their way again in a moment.
    closing: CancellationToken,
    stop: CancellationToken,
}

/// Runs until `stop`, or until a part fails.
pub async fn serve(config: Config, stop: CancellationToken) -> Result<(), AppError> {
    let listeners = bind(&config).await?;
    let Data { log, cluster, peers, mut member } = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        data = data::open(&config, &listeners) => data?,
    };
    let routing = Routing::new(Routes::default());
    routing.set(Routes::new(config.routes.clone())?, &log)?;
    let status = Status::default();
    let ready = ready_line(&listeners);
    // Not a child of `stop`: a member serves while it hands its shards over.
    let heads_stop = CancellationToken::new();
    let _when_returning = heads_stop.clone().drop_guard();
    let enrol = Enrol::open(log.clone(), config.enrol.clone()).await?;
    let membership = member.as_ref().map(|member| member.membership.clone());
    let stop_heads = heads_stop.clone();
    let closing = heads_stop.child_token();
    let parts = Parts {
        log,
        cluster,
        peers,
        membership,
        enrol,
        routing,
        status: status.clone(),
        closing: closing.clone(),
        stop: stop_heads,
    };
    let mut heads = start(&parts, &config, listeners).await?;
    // No client is to be told that what was not heard of yet is not there.
    let knowing = timeout(STREAMS, parts.log.catalog_changed(None));
    tokio::select! {
        _ = knowing => {}
        () = stop.cancelled() => {}
    }
    status.set_ready(true);
    say(&ready);
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        failure = tasks::failed() => Err(AppError::Part(failure.to_string())),
        error = data::lost(&parts.log, member.as_mut()) => Err(error),
        Some(ended) = heads.join_next() => Err(AppError::Part(match ended {
            Ok(why) => why,
            Err(error) => error.to_string(),
        })),
    };
    status.set_ready(false);
    if let (Some(member), Ok(())) = (member, &outcome) {
        closing.cancel();
        member.leave(Duration::from_millis(config.cluster.drain_ms)).await;
    }
    heads_stop.cancel();
    let ended = async { while heads.join_next().await.is_some() {} };
    if timeout(HEADS_STOP, ended).await.is_err() {
        heads.abort_all();
    }
    match timeout(LOG_STOP, parts.log.close()).await {
        Ok(Ok(()) | Err(LogError::Closed)) => outcome,
        Ok(Err(error)) => outcome.and(Err(AppError::Part(error.to_string()))),
        Err(_) => outcome.and(Err(AppError::Close)),
    }
}

/// Starts all heads; a task that ends says why.
async fn start(
    parts: &Parts,
    config: &Config,
    listeners: Listeners,
) -> Result<JoinSet<String>, AppError> {
    let Parts { log, cluster, peers, membership, enrol, routing, status, closing, stop } = parts;
    let mut heads = JoinSet::new();
    let bridge = Bridge::new(log.clone(), routing.clone(), config.bridge.clone());
    let shown = admin::Shown {
        log: log.clone(),
        bridge: bridge.clone(),
        enrol: enrol.clone(),
        routing: routing.clone(),
        status: status.clone(),
        cluster: cluster.clone(),
        membership: membership.clone(),
    };
    let admin = admin::serve(listeners.admin, shown, stop.clone());
    heads.spawn(async move { said("HTTP", admin.await) });

    let gate = Gate::new(config.listen.mqtt_limits());
    let (clients, broker) =
        mqtt::open(log.clone(), routing.clone(), config.mqtt.clone(), &gate, status, stop.clone());
    heads.spawn(async move { said("MQTT", broker.await) });
    let door = Door {
        log: log.clone(),
        peers: peers.clone(),
        bridge,
        clients,
        enrol: enrol.clone(),
        stop: stop.clone(),
    };
    let tls = listeners.edges.iter().filter_map(|(listener, _)| listener.tls.clone());
    let tls: Vec<_> = tls.chain(listeners.est.iter().map(|(_, tls)| tls.clone())).collect();
    tasks::spawn("certificates", listen::follow(tls, stop.clone()));
    let est = listeners.est.map(|(listener, tls)| {
        let (enrol, log, peers) = (enrol.clone(), log.clone(), peers.clone());
        let door = est::Door { tls, enrol, log, peers, stop: stop.clone() };
        let serving = est::serve(listener, door.clone(), closing.clone());
        heads.spawn(async move {
            serving.await;
            "the EST listener ended".to_owned()
        });
        door
    });
    let listening = door.clone().serve(listeners.mqtt, listeners.edges, gate, closing.clone());
    heads.spawn(async move {
        listening.await;
        "the MQTT listener ended".to_owned()
    });

    let (on, through, to) = (log.clone(), routing.clone(), peers.clone());
    let amqp = amqp::Head::open(config.amqp.clone(), on, through, to, status, stop.clone());
    let amqp_handed = amqp.handed();
    let closed = closing.clone();
    heads.spawn(async move {
        amqp.serve(listeners.amqp, closed).await;
        "the AMQP head ended".to_owned()
    });

    let groups = Groups::open(log.clone(), config.groups.clone(), stop.clone());
    let (settings, on, to) = (config.kafka.clone(), log.clone(), cluster.clone());
    let opening = kafka::Head::open(settings, on, groups.clone(), to, status, stop.clone());
    let failed = |error: LogError| AppError::Part(format!("the Kafka head failed: {error}"));
    let kafka = opening.await.map_err(failed)?;
    let serving = kafka.clone().serve(listeners.kafka);
    heads.spawn(async move {
        serving.await;
        groups.closed().await;
        "the Kafka head ended".to_owned()
    });
    if let Some(listener) = listeners.peer {
        let between = Between { door, est, amqp: amqp_handed, kafka };
        between::start(&mut heads, parts, listener, config.peer.connections, between);
    }
    Ok(heads)
}

fn said(head: &str, ended: Result<(), impl std::fmt::Display>) -> String {
    match ended {
        Ok(()) => format!("the {head} head ended"),
        Err(error) => format!("the {head} head failed: {error}"),
    }
}

async fn bind(config: &Config) -> Result<Listeners, AppError> {
    let listen = &config.listen;
    Ok(Listeners {
        edges: listen::open(&config.listeners, listen.allow_insecure).await?,
        est: bind_est(config)?,
        mqtt: bind_one(listen, "listen.mqtt", &listen.mqtt, false)?,
        kafka: bind_one(listen, "listen.kafka", &listen.kafka, false)?,
        amqp: bind_one(listen, "listen.amqp", &listen.amqp, false)?,
        admin: bind_one(listen, "listen.admin", &listen.admin, false)?,
        peer: if config.cluster.is_member() {
            // In a cluster no setting opens it to those who have proved nothing.
            let strict = Listen { allow_insecure: false, ..listen.clone() };
            let proved = config.peer.is_proved();
            Some(bind_one(&strict, "listen.peer", &listen.peer, proved)?)
        } else {
            None
        },
    })
}

/// EST proves who is who by a token or a certificate.
fn bind_est(config: &Config) -> Result<Option<(TcpListener, Arc<Tls>)>, AppError> {
    let address = &config.listen.est;
    if address.is_empty() {
        return Ok(None);
    }
    if config.enrol.ca.is_empty() {
        return Err(AppError::NoAuthority);
    }
    let tls = est::tls(&config.enrol)?;
    Ok(Some((bind_one(&config.listen, "listen.est", address, true)?, tls)))
}

fn bind_one(
    listen: &Listen,
    setting: &'static str,
    text: &str,
    secured: bool,
) -> Result<TcpListener, AppError> {
    let mut addresses = text.to_socket_addrs().map_err(|error| AppError::Address {
        setting,
        text: text.to_owned(),
        error,
    })?;
    let address = addresses.next().ok_or_else(|| AppError::NoAddress(setting, text.to_owned()))?;
    let exposure = Exposure { address, setting, tls: secured, authentication: secured };
    check_exposure(exposure, listen.allow_insecure)?;
    Ok(net::bind(address, setting)?)
}

fn ready_line(listeners: &Listeners) -> String {
    let address = |listener: &TcpListener| {
        let address: Option<SocketAddr> = listener.local_addr().ok();
        address.map(|address| address.to_string()).unwrap_or_default()
    };
    let mut addresses = serde_json::json!({
        "mqtt": address(&listeners.mqtt), "kafka": address(&listeners.kafka),
        "amqp": address(&listeners.amqp), "admin": address(&listeners.admin),
    });
    if let Some(addresses) = addresses.as_object_mut() {
        if let Some((listener, _)) = &listeners.est {
            addresses.insert("est".to_owned(), address(listener).into());
        }
        if let Some(listener) = &listeners.peer {
            addresses.insert("peer".to_owned(), address(listener).into());
        }
        for (listener, _) in &listeners.edges {
            addresses.insert(listener.setting.clone(), listener.address.to_string().into());
        }
    }
    format!("ready {addresses}\n")
}

/// The one line on stdout. A reader that is gone is not our trouble.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}
