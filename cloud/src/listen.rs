//! The MQTT listener: accepts, reads CONNECT, and hands edges to the bridge and everyone else to the MQTT head.
//!
//! Change here: who is handed to whom. Not here: limits of accepting (`shared::net`), what either does with a connection.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    connection::handshake,
    net::{Admitted, Gate, accept},
};

use crate::{
    bridge::{self, Bridge},
    mqtt::Clients,
};

/// Serves until `stop`, and until the connections have ended.
pub async fn serve(
    listener: TcpListener,
    gate: Arc<Gate>,
    bridge: Bridge,
    clients: Clients,
    stop: CancellationToken,
) {
    let stopping = stop.clone();
    let connection = move |stream: TcpStream, address: SocketAddr, mut admitted: Admitted| {
        let (bridge, clients, stop) = (bridge.clone(), clients.clone(), stopping.clone());
        async move {
            match handshake(stream, clients.settings(), clients.counters()).await {
                Err(refused) => tracing::debug!(%address, %refused, "no MQTT connection"),
                Ok(opened) => {
                    admitted.handshake_done();
                    if bridge::is_edge(&opened.connect) {
                        bridge.serve(opened, address.to_string(), stop).await;
                    } else {
                        clients.serve(opened, address).await;
                    }
                }
            }
        }
    };
    accept(listener, gate, stop, connection).await;
}
