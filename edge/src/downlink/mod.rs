//! Cloud -> devices: one task, one connection that listens.
//!
//! ```text
//! cloud's session of {edge}.down --PUBLISH--> sort --> broker: queues of devices + place, one commit --> PUBACK
//!                                              \----> settings: checked, on disk ---------------------/
//! ```
//! A command waits in the session at the cloud until this edge has it on disk; then the same commit says where in the
//! cloud's log it came from, so one that comes again after a lost PUBACK or a kill is known and dropped. PUBACKs go out in order.
//! Commands go to no lane, so none goes up again. While the disk is full nothing is acknowledged, and the cloud holds the rest.
//! A session that the cloud does not know any more begins anew: its log may be another one.
//!
//! In: a way to the cloud. Out: wishes to the broker. Change here: when a command is taken and acknowledged. Not here: which
//! device gets it and when it expires there (`shared::session`), packets (`link::down`).

mod sort;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    backoff::Backoff,
    mqtt::{
        Packet, PacketId, Qos,
        packet::{Publish, SubAck},
    },
    topic::filter,
};

use self::sort::{Places, Sorted, Topics};
use crate::{
    link::{Caller, Down, Filter, Listening},
    own::{BROUGHT, Downward, Wish},
    status::{DownStatus, Status},
    uplink,
};

tributary_shared::settings! {
    /// Commands from the cloud to devices.
    pub struct Settings {
        /// Listen for them, and for settings, if there is a cloud.
        pub enabled: bool = true,
        /// Topic filters of the cloud whose messages devices get under the topics they have there. What is published there to
        /// `tributary/{id}/down/{topic}` always comes, as `{topic}`.
        pub filters: Vec<String> = Vec::new(),
        /// Seconds in which the cloud must be reached with settings that it has pushed; without that the ones before hold again.
        pub confirm_s: u64 = 600 => 5..=86_400,
        /// Commands that may be under way to the disk; the cloud sends no more.
        pub receive_maximum: u16 = 20 => 1..=24,
        /// Bytes of the longest command; the cloud drops longer ones and counts them.
        pub packet_bytes: u32 = 1_114_112 => 16_384..=268_435_455,
    }
}

/// Filters there may be.
const FILTERS: usize = 32;

impl Settings {
    /// Says what is wrong with a value, if anything is.
    pub fn check_all(&self) -> Result<(), String> {
        if self.filters.len() > FILTERS {
            return Err(format!("`downlink.filters`: no more than {FILTERS}"));
        }
        let bad = |f: &&String| !filter::is_legal(f) || f.starts_with('$');
        match self.filters.iter().find(bad) {
            Some(bad) => Err(format!(
                "`downlink.filters`: `{bad}` is no topic filter, or begins with $, as no topic of the cloud's does"
            )),
            None => Ok(()),
        }
    }
}

/// A document with settings, and who waits until it is dealt with.
#[derive(Debug)]
pub struct Document {
    /// For this edge alone; else for all.
    pub own: bool,
    /// TOML; empty: taken back.
    pub text: Bytes,
    /// Told when it is on disk or refused.
    pub done: oneshot::Sender<()>,
}

/// What came and is not acknowledged.
#[derive(Debug)]
struct Pending {
    /// On this connection.
    id: Option<PacketId>,
    durable: oneshot::Receiver<()>,
}

/// Why a connection is over.
enum End {
    Stopped,
    Lost(String),
}

/// The task.
pub struct Downlink {
    caller: Caller,
    listening: Listening,
    topics: Topics,
    places: Places,
    broker: Downward,
    settings: mpsc::Sender<Document>,
    /// In order, also of earlier connections.
    pending: VecDeque<Pending>,
    status: Arc<Status>,
    backoff: Backoff,
    stop: CancellationToken,
}

/// Whom it hands things to.
#[derive(Debug)]
pub struct Takers {
    /// Commands.
    pub broker: Downward,
    /// Settings.
    pub settings: mpsc::Sender<Document>,
}

impl Downlink {
    /// `followed`: what the store has, by partition of the cloud's log.
    pub fn new(
        caller: Caller,
        (settings, uplink): (&Settings, &uplink::Settings),
        followed: HashMap<u64, u64>,
        takers: Takers,
        status: Arc<Status>,
        stop: CancellationToken,
    ) -> Self {
        let topics = Topics::new(&uplink.prefix, &caller.edge_id);
        let listening = Listening {
            filters: filters(&topics, settings),
            receive_maximum: settings.receive_maximum,
            packet_bytes: settings.packet_bytes,
        };
        let ms = Duration::from_millis;
        Self {
            caller,
            listening,
            topics,
            places: Places::new(followed),
            broker: takers.broker,
            settings: takers.settings,
            pending: VecDeque::new(),
            status,
            backoff: Backoff::new(ms(uplink.backoff_min_ms), ms(uplink.backoff_max_ms)),
            stop,
        }
    }

    /// Runs until stopped.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        loop {
            let dialed = tokio::select! {
                () = stop.cancelled() => return,
                dialed = Down::dial(&self.caller, &self.listening) => dialed,
            };
            let end = match dialed {
                Ok(link) => self.connection(link).await,
                Err(why) => End::Lost(why),
            };
            self.numbers().connected.store(false, Relaxed);
            let End::Lost(why) = end else { return };
            let wait = self.backoff.next_wait();
            tracing::warn!(why, ?wait, "no connection for commands from the cloud");
            tokio::select! { () = stop.cancelled() => return, () = sleep(wait) => {} }
        }
    }

    fn numbers(&self) -> &DownStatus {
        &self.status.down
    }

    async fn connection(&mut self, mut link: Down) -> End {
        tracing::info!(session_present = link.session_present, "connected for commands");
        self.numbers().connected.store(true, Relaxed);
        self.numbers().connects.add(1);
        // Their ids were the last connection's.
        self.pending.iter_mut().for_each(|pending| pending.id = None);
        if !link.session_present && !self.places.is_empty() {
            self.places.forget();
            if let Err(end) = self.bring(None, Wish::Anew) {
                return end;
            }
        }
        let stop = self.stop.clone();
        loop {
            self.numbers().waiting.set(self.pending.len() as u64);
            let taken = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    link.close().await;
                    return End::Stopped;
                }
                durable = front(&mut self.pending), if !self.pending.is_empty() => {
                    let Some(done) = self.pending.pop_front().filter(|_| durable) else {
                        // The broker has failed: everything is about to be built anew.
                        stop.cancelled().await;
                        return End::Stopped;
                    };
                    done.id.into_iter().for_each(|id| link.acknowledge(id));
                    Ok(())
                }
                packet = link.next() => match packet {
                    Ok(packet) => self.packet(packet),
                    Err(why) => Err(End::Lost(why)),
                },
            };
            if let Err(end) = taken {
                return end;
            }
        }
    }

    fn packet(&mut self, packet: Packet) -> Result<(), End> {
        match packet {
            Packet::Publish(publish) => self.publish(publish),
            Packet::SubAck(suback) => {
                self.backoff.reset();
                self.granted(&suback);
                Ok(())
            }
            other => Err(End::Lost(format!("the cloud sent what no server does: {other:?}"))),
        }
    }

    fn granted(&self, suback: &SubAck) {
        let answers = self.listening.filters.iter().zip(&suback.reasons);
        for (filter, reason) in answers.filter(|(_, reason)| reason.is_error()) {
            let filter = &filter.filter;
            tracing::error!(filter, reason = reason.0, "the cloud does not grant this filter");
        }
    }

    fn publish(&mut self, publish: Publish) -> Result<(), End> {
        let id = publish.packet_id;
        let unacknowledged = self.pending.iter().filter(|pending| pending.id.is_some()).count();
        let legal = match publish.qos {
            Qos::AtMostOnce => true,
            Qos::AtLeastOnce => unacknowledged < usize::from(self.listening.receive_maximum),
            Qos::ExactlyOnce => false,
        };
        if !legal {
            return Err(End::Lost("the cloud sent more than it may".to_owned()));
        }
        self.numbers().received.add(1);
        let (sorted, place) = sort::sort(&self.topics, publish);
        if let Sorted::Settings { own, text } = sorted {
            return self.document(id, own, text);
        }
        // QoS 0 is not remembered: it does not come again, and may be dropped.
        let remembered = place.filter(|_| id.is_some());
        if remembered.is_some_and(|place| !self.places.is_new(place)) {
            self.numbers().duplicates.add(1);
            // What came first may still be on its way to the disk: the answer waits behind it.
            return self.bring(id, Wish::Bring { publication: None, place: None });
        }
        let publication = match sorted {
            Sorted::Command(publication, qos) => Some((publication, qos)),
            Sorted::Expired => {
                self.numbers().expired.add(1);
                None
            }
            Sorted::Unusable | Sorted::Settings { .. } => {
                self.numbers().unusable.add(1);
                None
            }
        };
        if id.is_none()
            && self.pending.len() >= BROUGHT - usize::from(self.listening.receive_maximum)
        {
            self.status.dropped("downlink_qos0", 1);
            return Ok(());
        }
        self.bring(id, Wish::Bring { publication, place })?;
        // Not before it is handed over: what was not comes again, and is to be taken then.
        if let Some(place) = remembered {
            self.places.advance(place);
        }
        Ok(())
    }

    fn bring(&mut self, id: Option<PacketId>, wish: Wish) -> Result<(), End> {
        // What is left of earlier connections takes room too.
        let full = || End::Lost("too much is under way to the disk".to_owned());
        let durable = self.broker.send(wish).ok_or_else(full)?;
        self.pending.push_back(Pending { id, durable });
        Ok(())
    }

    fn document(&mut self, id: Option<PacketId>, own: bool, text: Bytes) -> Result<(), End> {
        let (done, durable) = oneshot::channel();
        let sent = self.settings.try_send(Document { own, text, done });
        sent.map_err(|_| End::Lost("settings come faster than they are taken".to_owned()))?;
        self.pending.push_back(Pending { id, durable });
        Ok(())
    }
}

fn filters(topics: &Topics, settings: &Settings) -> Vec<Filter> {
    let commands = [topics.down_filter()].into_iter().chain(settings.filters.iter().cloned());
    let of_settings = topics.settings().iter().cloned();
    let filter = |retained_again| move |filter| Filter { filter, retained_again };
    commands.map(filter(false)).chain(of_settings.map(filter(true))).collect()
}

/// Waits for the first of them; false: it never will be durable.
async fn front(pending: &mut VecDeque<Pending>) -> bool {
    match pending.front_mut() {
        Some(first) => (&mut first.durable).await.is_ok(),
        None => false,
    }
}
