//! The MQTT listener: which CONNECT goes where. Accepting is `shared::net`, serving `shared::connection`.
//!
//! Change here: which transports are open. Not here: limits of accepting, what a connection does.

use std::sync::Arc;

use tokio::net::TcpListener;
use tributary_shared::{
    connection::{self, Context},
    net::{self, Gate},
    session::event::Peer,
};

/// Serves until the context's stop, and until the connections have ended.
pub async fn serve(listener: TcpListener, gate: Arc<Gate>, context: Arc<Context>) {
    let stop = context.stop.clone();
    net::accept(listener, gate, stop, move |stream, address, mut admitted| {
        let context = context.clone();
        async move {
            let opened = tokio::select! {
                () = context.stop.cancelled() => return,
                opened = connection::handshake(stream, &context.settings, &context.counters) => opened,
            };
            match opened {
                Ok(opened) => {
                    admitted.handshake_done();
                    let peer = Peer { principal: None, address: Some(address) };
                    connection::run(opened, peer, &context).await;
                }
                Err(refused) => tracing::debug!(%address, %refused, "no connection"),
            }
        }
    })
    .await;
}
