//! A virtual host through the comings and goings of its shard: while it is here an owner serves, while it is not nobody is.
//!
//! In: commands of connections. Out: closed connections when the shard leaves or a commit fails: what they were not told has not
//! happened, and they come again to wherever it is. Not here: what commands do (`owner`).

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Command, Numbers, owner::Owner};
use crate::{
    engine::ShardId,
    log::{Log, LogError, Opening},
    route::Routing,
};

/// Between a failure and the next try.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What a virtual host's task works with.
pub(super) struct Keeper {
    pub name: String,
    pub log: Log,
    pub routing: Routing,
    pub numbers: Arc<Numbers>,
    /// For the router; the virtual host ends when the connections' are gone.
    pub commands: mpsc::WeakSender<Vec<Command>>,
    pub stop: CancellationToken,
}

/// For the home shard and the partitions that live there.
pub(super) fn home_name(name: &str) -> String {
    format!("amqp:{name}")
}

/// The shard of a virtual host.
pub fn home(log: &Log, name: &str) -> ShardId {
    log.home_shard(&home_name(name))
}

impl Keeper {
    pub(super) fn home(&self) -> ShardId {
        home(&self.log, &self.name)
    }

    pub(super) async fn run(self, mut inbox: mpsc::Receiver<Vec<Command>>) {
        loop {
            let opening = tokio::select! {
                opening = self.log.here(self.home()) => opening,
                () = turn_away(&mut inbox) => return,
                // Connections may still be ending; there is nothing that they could store here.
                () = self.stop.cancelled() => return,
            };
            let Ok(opening) = opening else { return };
            match self.serve(opening, &mut inbox).await {
                Ok(()) | Err(LogError::Closed) => return,
                Err(LogError::NotOwner) => tracing::info!("virtual host is not served here now"),
                Err(error) => tracing::error!(%error, "virtual host is read back from the store"),
            }
            // Commands of connections that are closed now, and stretches that the next router reads again.
            while inbox.try_recv().map(refuse).is_ok() {}
            if self.log.opening(self.home()) == Some(opening) {
                tokio::select! {
                    () = tokio::time::sleep(AGAIN_AFTER) => {}
                    () = self.stop.cancelled() => {}
                }
            }
        }
    }

    /// One opening of the shard.
    async fn serve(
        &self,
        opening: Opening,
        inbox: &mut mpsc::Receiver<Vec<Command>>,
    ) -> Result<(), LogError> {
        let gone = self.log.gone(self.home(), opening);
        tokio::pin!(gone);
        let opened = async {
            let owner = Owner::open(self, opening).await?;
            let router = owner.router().await?;
            Ok::<_, LogError>((owner, router))
        };
        let (mut owner, router) = tokio::select! {
            opened = opened => opened?,
            () = &mut gone => return Err(LogError::NotOwner),
        };
        let router = router.run(self.commands.clone());
        let ended = tokio::select! {
            ended = owner.run(inbox) => ended,
            Err(error) = router => Err(error),
            () = &mut gone => Err(LogError::NotOwner),
        };
        owner.close_all();
        ended
    }
}

/// Until all handles are gone.
async fn turn_away(inbox: &mut mpsc::Receiver<Vec<Command>>) {
    while let Some(commands) = inbox.recv().await {
        refuse(commands);
    }
}

fn refuse(commands: Vec<Command>) {
    for command in commands {
        if let Command::Attach { outbox, .. } = command {
            outbox.close();
        }
    }
}
