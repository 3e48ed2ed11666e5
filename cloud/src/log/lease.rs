//! Until when a node may serve what it owns, by its own monotonic clock.
//!
//! In: the moment, moved by who proves to the cluster that this node lives. Out: whether it is over. It is for readers' sake: what
//! is acknowledged is kept true by the engine's fence. Not here: when it moves (`cluster`).

use tokio::{sync::watch, time::Instant};

/// Handle; clones share the moment.
#[derive(Debug, Clone)]
pub struct Lease {
    /// `None`: never over.
    until: watch::Sender<Option<Instant>>,
}

impl Lease {
    /// Never over: a single node.
    pub fn forever() -> Self {
        Self { until: watch::Sender::new(None) }
    }

    /// Over until [`Lease::extend`].
    pub fn over() -> Self {
        Self { until: watch::Sender::new(Some(Instant::now())) }
    }

    /// From now on it is over at `until`: later, or earlier.
    pub fn extend(&self, until: Instant) {
        self.until.send_replace(Some(until));
    }

    /// Whether it is not over.
    pub fn is_valid(&self) -> bool {
        self.until.borrow().is_none_or(|until| Instant::now() < until)
    }

    /// For [`Lease::changed`]: taken before a look at it, so that no move is missed.
    pub(super) fn moves(&self) -> watch::Receiver<Option<Instant>> {
        self.until.subscribe()
    }

    /// Returns when it was moved since the last call, or is over (not if it is already).
    pub(super) async fn changed(moves: &mut watch::Receiver<Option<Instant>>) {
        let until = *moves.borrow();
        let over = async {
            match until {
                Some(until) if Instant::now() < until => tokio::time::sleep_until(until).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            moved = moves.changed() => if moved.is_err() {
                std::future::pending::<()>().await;
            },
            () = over => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_over_at_its_moment_and_valid_again_when_it_moves() {
        let lease = Lease::over();
        assert!(!lease.is_valid());
        lease.extend(Instant::now() + Duration::from_secs(3));
        assert!(lease.is_valid());
        Lease::changed(&mut lease.moves()).await;
        assert!(!lease.is_valid());
        let waits = tokio::spawn({
            let mut moves = lease.moves();
            async move { Lease::changed(&mut moves).await }
        });
        tokio::task::yield_now().await;
        lease.extend(Instant::now() + Duration::from_secs(3));
        waits.await.unwrap();
        assert!(lease.is_valid() && Lease::forever().is_valid());
    }
}
