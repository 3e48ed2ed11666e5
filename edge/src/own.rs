//! What parts of the edge themselves give the broker: publications of the edge, and what came down from the cloud.
//!
//! ```text
//! Own::publish ----> Inbox --> broker: State::decide --> lanes and queues, one commit --> answered
//! Downward::bring -/                                      (brought: with its place, into no lane)
//! ```
//! What is answered is durable. While the disk is full the broker takes nothing from here, so that all of it waits, and
//! nothing is lost. Change here: what a part may ask of the broker. Not here: what it publishes (the part), where a message
//! goes (`shared::session`).

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use tokio::sync::{mpsc, oneshot};
use tributary_shared::{
    message::Message,
    mqtt::{
        packet::{PublishProperties, Qos},
        write::Encoded,
    },
    session::{Change, Event, Now},
    topic,
};

/// Publications that may wait for the broker; publishers wait beyond that.
const OWN: usize = 16;

/// Things from the cloud that may wait for the broker; the connection has no more under way.
pub const BROUGHT: usize = 32;

/// Why something was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum OwnError {
    #[error("`{0}` is not a topic name")]
    Topic(ByteString),
    #[error("the broker has stopped")]
    Stopped,
}

/// Where something lies in the cloud's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Partition.
    pub source: u64,
    /// Offset.
    pub offset: u64,
}

/// What is to be published.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Publication {
    /// Where to.
    pub topic: ByteString,
    /// What.
    pub payload: Bytes,
    /// With it. Expiry counts from when the broker takes it.
    pub properties: PublishProperties,
    /// To be kept as the topic's last.
    pub retain: bool,
}

/// What the broker is to do.
#[derive(Debug)]
pub enum Wish {
    /// Publish what the edge says: as a client's message, QoS 1.
    Publish(Publication),
    /// Publish what came from the cloud, but not back to it; store the place with it.
    Bring {
        /// It; `None`: only the place is to be stored.
        publication: Option<(Publication, Qos)>,
        /// Where it came from.
        place: Option<Place>,
    },
    /// Forget all places.
    Anew,
}

/// A wish, and who waits until it is durable.
#[derive(Debug)]
pub struct Item {
    wish: Wish,
    /// Told when it is durable; dropped when it never will be.
    pub done: oneshot::Sender<()>,
}

/// For parts that publish. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Own(mpsc::Sender<Item>);

/// For the one that brings what the cloud sends down.
#[derive(Debug)]
pub struct Downward(mpsc::Sender<Item>);

/// The broker's end.
#[derive(Debug)]
pub struct Inbox {
    own: mpsc::Receiver<Item>,
    brought: mpsc::Receiver<Item>,
}

/// All three ends.
pub fn inbox() -> (Own, Downward, Inbox) {
    let (own, own_items) = mpsc::channel(OWN);
    let (down, brought) = mpsc::channel(BROUGHT);
    (Own(own), Downward(down), Inbox { own: own_items, brought })
}

impl Own {
    /// Publishes at QoS 1, to local subscribers and to the lane that takes the topic. Answers when it is durable.
    pub async fn publish(
        &self,
        topic: impl Into<ByteString>,
        payload: impl Into<Bytes>,
        properties: PublishProperties,
        retain: bool,
    ) -> Result<(), OwnError> {
        let topic = topic.into();
        if !topic::is_legal_name(&topic) {
            return Err(OwnError::Topic(topic));
        }
        let publication = Publication { topic, payload: payload.into(), properties, retain };
        let (done, durable) = oneshot::channel();
        let item = Item { wish: Wish::Publish(publication), done };
        self.0.send(item).await.map_err(|_| OwnError::Stopped)?;
        durable.await.map_err(|_| OwnError::Stopped)
    }
}

impl Downward {
    /// Hands over, in order; the answer comes when it is durable, or its sender goes when it never will be. `None`: the
    /// broker has stopped, or has [`BROUGHT`] of them.
    pub fn send(&self, wish: Wish) -> Option<oneshot::Receiver<()>> {
        let (done, durable) = oneshot::channel();
        self.0.try_send(Item { wish, done }).ok().map(|()| durable)
    }
}

impl Inbox {
    /// The next of either kind; waits for ever when nobody can send any more.
    pub(crate) async fn next(&mut self) -> Item {
        tokio::select! {
            Some(item) = self.brought.recv() => item,
            Some(item) = self.own.recv() => item,
            else => std::future::pending().await,
        }
    }
}

impl Item {
    /// What happens because of it, and what is to be stored with that.
    pub(crate) fn into_parts(
        self,
        now: Now,
    ) -> (Option<Event>, Option<Change>, oneshot::Sender<()>) {
        let (event, change) = match self.wish {
            Wish::Publish(publication) => {
                (Some(Event::Publish(publication.message(Qos::AtLeastOnce, now))), None)
            }
            Wish::Bring { publication, place } => {
                let event = publication.map(|(publication, qos)| Event::Message {
                    message: publication.message(qos, now),
                    stored: None,
                });
                let next = |place: Place| Change::Followed {
                    source: place.source,
                    next: place.offset.saturating_add(1),
                };
                (event, place.map(next))
            }
            Wish::Anew => (None, Some(Change::FollowsAnew)),
        };
        (event, change, self.done)
    }
}

impl Publication {
    fn message(self, qos: Qos, now: Now) -> Arc<Message> {
        let left = self.properties.message_expiry;
        Arc::new(Message {
            topic: self.topic,
            payload: self.payload,
            qos,
            retain: self.retain,
            properties: self.properties,
            publisher: None,
            received_ms: now.wall_ms,
            expires_ms: left.map(|s| now.lasting_ms.saturating_add(i64::from(s) * 1000)),
            encoded: Encoded::default(),
            place: None,
        })
    }
}
