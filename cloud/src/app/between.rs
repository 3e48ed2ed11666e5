//! What this node does for the other nodes of its cluster, and hears of them. A single node has none of it.
//!
//! Not here: how nodes speak (`peer`), what the heads do.

use std::sync::Arc;

use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Parts, said};
use crate::{
    amqp,
    enrol::est,
    kafka,
    listen::Door,
    peer::{self, Heads, Protocol, follow, pages},
};

/// Who serves what other nodes bring.
pub(super) struct Between {
    pub(super) door: Door,
    pub(super) est: Option<est::Door>,
    pub(super) amqp: amqp::Handed,
    pub(super) kafka: Arc<kafka::Head>,
}

/// Serves other nodes on `listener`, and follows what they own.
pub(super) fn start(
    tasks: &mut JoinSet<String>,
    parts: &Parts,
    listener: TcpListener,
    connections: usize,
    between: Between,
) {
    let Between { door, est, amqp, kafka } = between;
    let mut heads = Heads::default()
        .with(Protocol::Mqtt, move |stream, header, admitted| {
            door.clone().handed(stream, header, admitted)
        })
        .with(Protocol::Amqp, move |stream, header, admitted| {
            amqp.clone().serve(stream, header, admitted)
        })
        .with(Protocol::Kafka, move |stream, _, mut admitted| {
            let kafka = Arc::clone(&kafka);
            async move {
                admitted.handshake_done();
                kafka.serve_stream(stream, "another node".to_owned()).await;
                drop(admitted);
            }
        });
    if let Some(est) = est {
        heads = heads.with(Protocol::Est, move |stream, header, admitted| {
            est.clone().handed(stream, header, admitted)
        });
    }
    let stop: &CancellationToken = &parts.stop;
    let (log, enrol) = (parts.log.clone(), parts.enrol.clone());
    let (heads, pages) = pages::open(heads, log, enrol, stop.clone());
    tasks.spawn(async move { said("HTTP between nodes", pages.await) });
    parts.peers.publish(&parts.status);
    let serving = peer::serve(listener, parts.peers.clone(), heads, connections, stop.clone());
    tasks.spawn(async move {
        serving.await;
        "the listener for other nodes ended".to_owned()
    });
    let (peers, log, enrol) = (parts.peers.clone(), parts.log.clone(), parts.enrol.clone());
    let following = follow::run(peers, log, enrol, stop.clone());
    tasks.spawn(async move {
        following.await;
        "the following of other nodes ended".to_owned()
    });
}
