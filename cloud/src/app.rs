//! Builds the parts, joins their handles, owns start and stop order.
//!
//! ```text
//! start: listeners bound -> log open -> heads -> "ready"        stop: heads -> log closed
//! ```
//! Listeners are bound before the data is opened: a second cloud on the same ports must not fence the first.
//! Not here: settings (`config`), signals (`main`), what the parts do.

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

use self::data::Data;
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
    route::{RouteError, Routes, Routing},
    status::Status,
};

/// For the heads to say goodbye to their clients.
const HEADS_STOP: Duration = Duration::from_millis(2_500);
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
    membership: Option<Membership>,
    enrol: Enrol,
    routing: Routing,
    status: Status,
    stop: CancellationToken,
}

/// Runs until `stop`, or until a part fails.
pub async fn serve(config: Config, stop: CancellationToken) -> Result<(), AppError> {
    let listeners = bind(&config).await?;
    let Data { log, cluster, mut member } = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        data = data::open(&config, &listeners) => data?,
    };
    let routing = Routing::new(Routes::default());
    routing.set(Routes::new(config.routes.clone())?, &log)?;
    let status = Status::default();
    let ready = ready_line(&listeners);
    let heads_stop = stop.child_token();
    let enrol = Enrol::open(log.clone(), config.enrol.clone()).await?;
    let membership = member.as_ref().map(|member| member.membership.clone());
    let stop_heads = heads_stop.clone();
    let parts = Parts {
        log,
        cluster,
        membership,
        enrol,
        routing,
        status: status.clone(),
        stop: stop_heads,
    };
    let mut heads = start(&parts, &config, listeners);
    status.set_ready(true);
    say(&ready);
    let outcome = tokio::select! {
        // First: the heads stop by the same token, and that is no failure.
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
fn start(parts: &Parts, config: &Config, listeners: Listeners) -> JoinSet<String> {
    let Parts { log, cluster, membership, enrol, routing, status, stop } = parts;
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
    let door = Door { bridge, clients, enrol: enrol.clone(), stop: stop.clone() };
    let tls = listeners.edges.iter().filter_map(|(listener, _)| listener.tls.clone());
    let tls: Vec<_> = tls.chain(listeners.est.iter().map(|(_, tls)| tls.clone())).collect();
    tasks::spawn("certificates", listen::follow(tls, stop.clone()));
    if let Some((listener, tls)) = listeners.est {
        let serving = est::serve(listener, tls, enrol.clone(), stop.clone());
        heads.spawn(async move {
            serving.await;
            "the EST listener ended".to_owned()
        });
    }
    let listening = door.serve(listeners.mqtt, listeners.edges, gate);
    heads.spawn(async move {
        listening.await;
        "the MQTT listener ended".to_owned()
    });

    let settings = config.amqp.clone();
    let (on, through, page, until) = (log.clone(), routing.clone(), status.clone(), stop.clone());
    heads.spawn(async move {
        let ended = amqp::serve(listeners.amqp, settings, on, through, &page, until).await;
        said("AMQP", ended)
    });

    let groups = Groups::open(log.clone(), config.groups.clone(), stop.clone());
    let (settings, log, status, stop) =
        (config.kafka.clone(), log.clone(), status.clone(), stop.clone());
    let cluster = cluster.clone();
    heads.spawn(async move {
        let head = kafka::Head::open(settings, log, groups.clone(), cluster, &status, stop.clone());
        let ended = match head.await {
            Ok(head) => {
                head.serve(listeners.kafka).await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        groups.closed().await;
        said("Kafka", ended)
    });
    heads
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
            Some(bind_one(listen, "listen.peer", &listen.peer, false)?)
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
