//! Builds the parts, joins their handles, owns start and stop order.
//!
//! ```text
//! start: access prepared, ports bound -> store open -> broker, uplinks -> "ready"
//! stop:  no new connections, clients told -> broker has everything durable -> uplinks say goodbye -> store closed
//! ```
//! When the store fails while it is in use, everything but the HTTP port is stopped and built again on a store opened
//! anew: clients reconnect and send again what was never acknowledged. If that fails too, the process ends. The same is done
//! when the cloud has pushed settings; if the edge cannot be started with them it goes back to those before.
//! Not here: settings (`config`), what is carried from one life of the parts into the next (`lives`), signals (`main`), what the
//! parts do.

mod lives;
mod upstream;

use std::{
    io::Write as _,
    net::SocketAddr,
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread::JoinHandle as Thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    clock::Clock,
    connection::{Context, Handle, Incoming},
    net::{
        self, BindError, Exposed, Exposure, Gate, Listener,
        listener::{Bound, ListenError},
    },
    session::{Fanout, State},
};

use self::{
    lives::Lives,
    upstream::{downlink, start_uplinks},
};
use crate::{
    access::{Access, AccessError},
    admin,
    broker::Broker,
    config::Config,
    downlink::Document,
    enrol::Identity,
    inventory,
    listen::{self, Door},
    notify::Manager,
    own,
    pushed::{self, Compose, Pushed},
    status::Status,
    store::{self, After, Opened, Store},
    sys,
    uplink::Format,
};

/// Items of connections that may wait for the broker; each may hold all of one read.
const INCOMING: usize = 32;

/// For clients to be told and everything to be durable.
const BROKER_STOP: Duration = Duration::from_millis(3_500);

/// For the uplinks, and then for the store, to close.
const PART_STOP: Duration = Duration::from_millis(500);

/// A store that fails again this soon after it was opened is not opened once more.
const STEADY: Duration = Duration::from_mins(1);

/// Why the edge does not run (any more). One sentence each.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AppError {
    #[error("{0}")]
    Config(String),
    #[error(
        "`{setting}` = `{address}` is not an address: expected host:port, as in 127.0.0.1:1883"
    )]
    Address { setting: &'static str, address: String },
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Exposed(#[from] Exposed),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{0}")]
    Store(#[from] store::Error),
    #[error("stopped because {0}")]
    Part(String),
    #[error("not everything stopped in time: what was acknowledged is safe")]
    Stop,
}

/// Runs until `stop`, or until a part fails. `changed`: settings as they are read again.
pub async fn serve(
    config: Config,
    compose: Compose,
    changed: watch::Receiver<Config>,
    stop: CancellationToken,
) -> Result<(), AppError> {
    config.check().map_err(AppError::Config)?;
    config.uplink.login().map_err(AppError::Config)?;
    let status = Arc::new(Status::default());
    let access = Access::prepare(&config).await?;
    let mut listeners = access.listeners.clone();
    let admin_at = address(&config, "listen.admin", &config.listen.admin).await?;
    let bound = bind(&mut listeners)?;
    let admin_listener = net::bind(admin_at, "listen.admin")?;
    let admin_at = admin_listener.local_addr().unwrap_or(admin_at);
    let admin_stop = stop.child_token();
    let opened = lives::open(&lives::plan(&config, After::Start), &status).await?;
    let shown = admin::Shown::new(&config, status.clone(), access.clone());
    let following = access.clone().follow(changed, admin_stop.clone());
    let following = tributary_shared::tasks::critical("access", &admin_stop, following);
    let http = admin::serve(admin_listener, shown.clone(), admin_stop.clone());
    let http = tributary_shared::tasks::critical("admin", &admin_stop, http);
    let manager = Manager::from_environment();
    let (alive, watched) = watch::channel(None);
    let beating = manager.clone().beat(watched, admin_stop.clone());
    let beating = tributary_shared::tasks::critical("notify", &admin_stop, beating);
    let (pushed, ends) = Pushed::new(config.clone(), compose, status.clone());
    let pushed =
        tributary_shared::tasks::critical("pushed", &admin_stop, pushed.run(admin_stop.clone()));
    let mut lives = Lives::new(config, ends.apply, ends.failed);
    let mut next = Some((bound, opened));
    let outcome = loop {
        let began = Instant::now();
        let (bound, opened) = match next.take() {
            Some(first) => first,
            None => match lives.open(&status, &stop).await {
                Err(_) if stop.is_cancelled() => break Ok(()),
                opened => (bind(&mut listeners)?, opened?),
            },
        };
        let config = lives.config.clone();
        let ready = |broker| {
            alive.send_replace(Some(broker));
            manager.say("READY=1");
            say_ready(&listeners, admin_at, &config.id, &status);
        };
        let open = listeners.iter().cloned().zip(bound).collect();
        let life = stop.child_token();
        let outcome = {
            let told = (ends.documents.clone(), ends.state.clone());
            let running = run(&config, (open, opened), &status, &shown, told, &life, ready);
            tokio::pin!(running);
            tokio::select! {
                outcome = &mut running => outcome,
                () = lives.asked() => {
                    life.cancel();
                    running.await
                }
            }
        };
        let going_on = !stop.is_cancelled();
        let asked = going_on && life.is_cancelled();
        let steady = going_on && (began.elapsed() > STEADY || status.store_reopened.get() == 0);
        if let ControlFlow::Break(outcome) = lives.ended(outcome, asked, steady, &status) {
            break outcome;
        }
    };
    admin_stop.cancel();
    // Late or not, the process ends next.
    let _late = timeout(PART_STOP, async { tokio::join!(http, following, beating, pushed) }).await;
    outcome
}

/// One life of broker, uplinks and store.
async fn run(
    config: &Config,
    (listeners, opened): (Vec<(Listener, Bound)>, Opened),
    status: &Arc<Status>,
    shown: &admin::Shown,
    (documents, settings): (mpsc::Sender<Document>, watch::Receiver<pushed::State>),
    stop: &CancellationToken,
    ready: impl FnOnce(mpsc::WeakSender<Incoming>),
) -> Result<(), AppError> {
    let Opened { store, journal, restored, observed_ms, followed, threads } = opened;
    status.begin(store.lanes());
    inventory::clock::look(status);
    let clock = Clock::start().observing(observed_ms);
    let state = State::new(config.session.clone(), Fanout::AtOnce, restored, clock.now());
    let access = shown.access();
    let permissions = access.permissions();
    let broker = Broker::new(state, store.clone(), journal, status.clone(), clock, permissions);
    let (incoming, queue) = mpsc::channel(INCOMING);
    let clients_stop = stop.child_token();
    let alive = incoming.downgrade();
    let packet_bytes = config.session.packet_bytes as usize;
    let context = Context::new(
        Handle { incoming },
        config.connection.clone(),
        packet_bytes,
        clients_stop.clone(),
    );
    let context = Arc::new(context);
    let gate = Gate::new(config.net.clone());
    shown.watch(&context, &gate);
    let door = Door { context, identities: access.identities.clone(), clock };
    let mut parts = JoinSet::new();
    let (tell, told) = watch::channel(Vec::new());
    let (own, down, inbox) = own::inbox();
    let (reporting, edge, telling) = (clients_stop.clone(), config.id.clone(), own.clone());
    parts.spawn(async move {
        pushed::report(telling, edge, settings, reporting).await;
        Ok(())
    });
    parts.spawn(async move { broker.run(queue, told, inbox).await.map_err(AppError::from) });
    let (source, telling, telling_stop) = (shown.clone(), config.sys.clone(), clients_stop.clone());
    parts.spawn(async move {
        sys::run(source, telling, tell, telling_stop).await;
        Ok(())
    });
    let (watched, watching) = (status.clone(), clients_stop.clone());
    parts.spawn(async move {
        inventory::clock::watch(watched, watching).await;
        Ok(())
    });
    let (source, telling_stop) = (shown.clone(), clients_stop.clone());
    // Whose broker is the cloud did not ask for it.
    let plain = config.uplink.format == Format::Mqtt;
    let settings =
        inventory::Settings { interval_s: if plain { 0 } else { config.inventory.interval_s } };
    let identity = Identity::new(config);
    parts.spawn(async move {
        inventory::run(source, own, identity, settings, telling_stop).await;
        Ok(())
    });
    parts.spawn(async move {
        listen::serve(listeners, gate, door).await;
        Ok(())
    });
    if let Some(downlink) = downlink(config, followed, (down, documents), status, &clients_stop)? {
        parts.spawn(async move {
            downlink.run().await;
            Ok(())
        });
    }
    let uplinks_stop = CancellationToken::new();
    let mut uplinks = start_uplinks(config, &store, status, &uplinks_stop)?;
    status.serving.store(true, Relaxed);
    ready(alive);
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        Some(ended) = parts.join_next() => ended_early("broker", ended),
        Some(ended) = uplinks.join_next(), if !uplinks.is_empty() => ended_early("uplink", ended),
    };
    status.serving.store(false, Relaxed);
    clients_stop.cancel();
    let rest = timeout(BROKER_STOP, async {
        let mut rest = Ok(());
        while let Some(ended) = parts.join_next().await {
            rest = rest.and(ended.unwrap_or_else(|error| Err(AppError::Part(error.to_string()))));
        }
        rest
    });
    let rest = rest.await.unwrap_or(Err(AppError::Stop));
    parts.abort_all();
    uplinks_stop.cancel();
    let gone = async { while uplinks.join_next().await.is_some() {} };
    if timeout(PART_STOP, gone).await.is_err() {
        uplinks.abort_all();
    }
    // Others only see that the store is closed; the writer knows why.
    let failed = store.progress().borrow().failed.clone();
    close(store, threads).await;
    failed.map_or(outcome.and(rest), |error| Err(AppError::Store(error)))
}

/// A part that ended although nobody asked it to.
fn ended_early(
    part: &str,
    ended: Result<Result<(), AppError>, tokio::task::JoinError>,
) -> Result<(), AppError> {
    match ended {
        Ok(Ok(())) => Err(AppError::Part(format!("the {part} ended"))),
        Ok(error) => error,
        Err(error) => Err(AppError::Part(format!("the {part} died: {error}"))),
    }
}

/// Waits for the threads, so that the folder is free when this returns.
async fn close(store: Store, threads: Vec<Thread<()>>) {
    let stopped = timeout(PART_STOP, store.stop()).await;
    drop(store);
    if stopped.is_err() {
        tracing::warn!("the store did not close in time; what was acknowledged is safe");
    }
    // On a thread of its own: the runtime does not end before its own have, and a disk may hang for ever.
    let (joined, all) = oneshot::channel();
    std::thread::spawn(move || {
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
        let _late = joined.send(());
    });
    let _late = timeout(PART_STOP, all).await;
}

/// The address of a listener, if it may be opened.
pub(crate) async fn address(
    config: &Config,
    setting: &'static str,
    address: &str,
) -> Result<SocketAddr, AppError> {
    let wrong = || AppError::Address { setting, address: address.to_owned() };
    let found = tokio::net::lookup_host(address).await.map_err(|_| wrong())?.next();
    let found = found.ok_or_else(wrong)?;
    let exposure = Exposure { address: found, setting, tls: false, authentication: false };
    net::check_exposure(exposure, config.net.allow_insecure)?;
    Ok(found)
}

/// Opens all; the ports that were picked stay the same when it is done again.
fn bind(listeners: &mut [Listener]) -> Result<Vec<Bound>, ListenError> {
    listeners.iter_mut().map(Listener::bind).collect()
}

/// The one line on stdout; once a process.
fn say_ready(listeners: &[Listener], admin: SocketAddr, id: &str, status: &Status) {
    if status.lives.get() > 1 {
        return;
    }
    let mut line = serde_json::json!({ "admin": admin.to_string(), "id": id });
    for listener in listeners {
        let name = if listener.setting == "listen.mqtt" { "mqtt" } else { &listener.setting };
        if let Some(line) = line.as_object_mut() {
            line.insert(name.to_owned(), listener.address.to_string().into());
        }
        let (address, transport) = (&listener.address, listener.transport);
        tracing::info!(%address, ?transport, methods = ?listener.methods, "listening");
    }
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "ready {line}").and_then(|()| out.flush()) {
        tracing::warn!(%error, "nobody reads stdout");
    }
    tracing::info!(%admin, id, "ready");
}
