//! The MQTT listener: accepts, reads CONNECT, and hands edges to the bridge and everyone else to the MQTT head.
//!
//! Holds: the limit of connections. Change here: who is handed to whom. Not here: what either does with a connection.

use std::{sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::bridge::Bridge;

/// Connections of this listener, edges and clients together; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 10_000;
/// After accept failed (out of file descriptors): time for others to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then waits for the connections to end.
pub async fn serve(
    listener: TcpListener,
    bridge: Bridge,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let (stream, address) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let (bridge, stop) = (bridge.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            connection(stream, address.to_string(), bridge, stop).await;
        });
    }
    connections.close();
    connections.wait().await;
    Ok(())
}

async fn connection(stream: TcpStream, address: String, bridge: Bridge, stop: CancellationToken) {
    let _ = (stream, address, bridge, stop);
}
