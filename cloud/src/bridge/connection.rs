//! One edge's connection: uploads in, PUBACKs out in the same order, each when its commit is durable.
//!
//! ```text
//! reader: packets -> upload -> divide -> log.submit --\ bounded queue, in order
//! writer:          PUBACK <- answer <- await durable <-/
//! ```
//! Uploads are submitted as they come, so that many are on their way to the store at once. The window is bounded in
//! messages (receive maximum: 0x93 beyond it) and in bytes (the reader waits). Not here: taking over (`live`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tributary_shared::{
    clock::wall_ms,
    mqtt::{
        Reader, Version,
        packet::{Disconnect, Packet, PacketId, Publish, Qos, Reason, SubAck, UserProperties},
        write::write,
    },
    telemetry::brief,
};

use super::{
    Bridge, CLASH_PROPERTY,
    admission::{Busy, Visitor},
    answer::{Answer, words},
    clocks::Clocks,
    divide::{Divided, Divider},
    live::{Registration, Traffic},
    upload::{self, Content, Mark, Upload},
};
use crate::{
    engine::{ShardId, Write},
    log::{Guard, Log, LogError, Pending, StateSpace, Transaction},
};

/// Replies beyond the window's PUBACKs that may wait: answers to pings and subscriptions.
const OTHER_REPLIES: usize = 16;
/// A peer that takes nothing for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// After the last packet was read, this long for the answers that are on their way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a peer may take to read why it is closed.
const GOODBYE: Duration = Duration::from_millis(500);

/// What an older connection is told.
const TAKEN_OVER: (Reason, &str) =
    (Reason::SESSION_TAKEN_OVER, "a newer connection of the same edge and lane has come");
/// What is said at the end of the program.
const STOPPING: (Reason, &str) = (Reason::SERVER_SHUTTING_DOWN, "the cloud stops");

/// What the writer does next, in order.
enum Reply {
    Upload {
        packet_id: PacketId,
        outcome: Outcome,
        window: Window,
    },
    Packet(Packet),
    /// DISCONNECT with this, and nothing after it.
    Last(Goodbye),
}

/// Why the connection ends, for its peer.
struct Goodbye {
    reason: Reason,
    words: String,
    properties: UserProperties,
}

impl From<(Reason, &str)> for Goodbye {
    fn from((reason, words): (Reason, &str)) -> Self {
        Self { reason, words: words.to_owned(), properties: UserProperties::new() }
    }
}

impl From<Busy> for Goodbye {
    fn from(busy: Busy) -> Self {
        let words = "too many edges catch up at once".to_owned();
        Self { reason: Reason::QUOTA_EXCEEDED, words, properties: busy.properties() }
    }
}

impl Goodbye {
    fn packet(&self) -> Packet {
        let mut disconnect = Disconnect::new(self.reason);
        disconnect.reason_string = Some(words(&self.words));
        disconnect.user_properties.clone_from(&self.properties);
        Packet::Disconnect(disconnect)
    }
}

enum Outcome {
    Known(Answer),
    Pending { pending: Pending, mark: Mark, bytes: u64, gap: bool },
}

/// An upload's share of the window, given back when its PUBACK is written.
struct Window {
    _message: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
    _flight: Option<OwnedSemaphorePermit>,
}

/// One connection, after CONNACK.
pub(super) struct Connection {
    pub(super) bridge: Bridge,
    pub(super) edge: Arc<str>,
    pub(super) home: ShardId,
    pub(super) idle: Duration,
    pub(super) registration: Registration,
    pub(super) stop: CancellationToken,
    pub(super) first_seen_saved: bool,
    pub(super) visitor: Visitor,
}

impl Connection {
    /// Runs to the end of the connection.
    pub(super) async fn run<S>(mut self, stream: S, reader: Reader, buffer: BytesMut)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut input, output) = tokio::io::split(stream);
        let messages = usize::from(self.bridge.settings.receive_maximum);
        let (replies, queue) = mpsc::channel(messages + OTHER_REPLIES);
        let traffic = self.registration.traffic.clone();
        let (edge, bridge) = (self.edge.clone(), self.bridge.clone());
        let brought = self.registration.brought.clone();
        let told = Told { edge, bridge, traffic, brought };
        let mut writer = std::pin::pin!(write_replies(output, queue, told));
        let read = async {
            let end = self.read(&mut input, reader, buffer, &replies).await;
            if let Some(goodbye) = end {
                tracing::warn!(
                    edge = &*self.edge,
                    code = goodbye.reason.0,
                    why = goodbye.words,
                    "an edge's connection is ended"
                );
                // The writer may be gone; then nobody needs to be told.
                let _ = replies.send(Reply::Last(goodbye)).await;
            }
            drop(replies);
        };
        tokio::select! {
            () = read => {
                // What was submitted is answered if that is soon; if not, the edge sends it again and is told "duplicate".
                let _ = timeout(DRAIN_TIMEOUT, writer).await;
            }
            () = &mut writer => {}
        }
        linger(&mut input).await;
    }

    /// Reads until the end; `Some`: what to say in DISCONNECT. What was submitted before is answered first.
    async fn read<R>(
        &mut self,
        input: &mut R,
        mut reader: Reader,
        mut buffer: BytesMut,
        replies: &mpsc::Sender<Reply>,
    ) -> Option<Goodbye>
    where
        R: AsyncRead + Unpin,
    {
        let settings = &self.bridge.settings;
        let messages = Arc::new(Semaphore::new(usize::from(settings.receive_maximum)));
        let window_bytes = self.visitor.share(settings.window_bytes);
        let bytes = Arc::new(Semaphore::new(window_bytes));
        let (taken_over, stop) = (self.registration.taken_over.clone(), self.stop.clone());
        loop {
            loop {
                let packet = match reader.read(&mut buffer) {
                    Ok(Some(packet)) => packet,
                    Ok(None) => break,
                    Err(malformed) => {
                        let reason = malformed.reason;
                        return Some((reason, &*malformed.to_string()).into());
                    }
                };
                let reply = match packet {
                    Packet::Publish(publish) => {
                        let Ok(message) = messages.clone().try_acquire_owned() else {
                            let why = "more unanswered uploads than the receive maximum in CONNACK";
                            return Some((Reason::RECEIVE_MAXIMUM_EXCEEDED, why).into());
                        };
                        let share = publish.payload.len().min(window_bytes);
                        let share = bytes.clone().acquire_many_owned(share as u32).await.ok();
                        let flight = self.visitor.flight(publish.payload.len()).await;
                        let window = Window { _message: message, _bytes: share, _flight: flight };
                        // Only QoS 1 has a PUBACK to say no with.
                        let Some(packet_id) =
                            publish.packet_id.filter(|_| publish.qos == Qos::AtLeastOnce)
                        else {
                            let why = "uploads are QoS 1, not 0 or 2";
                            return Some((Reason::QOS_NOT_SUPPORTED, why).into());
                        };
                        let outcome = self.publish(&publish).await;
                        Reply::Upload { packet_id, outcome, window }
                    }
                    Packet::Disconnect(_) => return None,
                    other => Reply::Packet(match answer_other(other) {
                        Ok(packet) => packet,
                        Err(reason) => {
                            let why = "an edge sends uploads, pings and subscriptions only";
                            return Some((reason, why).into());
                        }
                    }),
                };
                if replies.send(reply).await.is_err() {
                    return None;
                }
            }
            buffer.reserve(16 * 1024);
            let read = tokio::select! {
                biased;
                () = taken_over.cancelled() => return Some(TAKEN_OVER.into()),
                () = stop.cancelled() => return Some(STOPPING.into()),
                () = self.visitor.turn_over() => None,
                read = timeout(self.idle, input.read_buf(&mut buffer)) => match read {
                    Ok(Ok(0) | Err(_)) => return None,
                    Ok(Ok(read)) => Some(read),
                    Err(_) => {
                        let why = "nothing came for one and a half times the keep-alive";
                        return Some((Reason::KEEP_ALIVE_TIMEOUT, why).into());
                    }
                },
            };
            let Some(read) = read else {
                self.visitor.give_up_turn();
                continue;
            };
            // Ahead of what was read now: that is in memory, what comes next is not.
            tokio::select! {
                biased;
                () = taken_over.cancelled() => return Some(TAKEN_OVER.into()),
                () = stop.cancelled() => return Some(STOPPING.into()),
                admitted = self.visitor.read(read) => if let Err(busy) = admitted {
                    return Some(busy.into());
                },
            }
        }
    }

    /// Checks one upload and submits it.
    async fn publish(&mut self, publish: &Publish) -> Outcome {
        let upload = match upload::read(publish, &self.edge) {
            Ok(upload) => upload,
            Err(refusal) => return Outcome::Known(refusal.into()),
        };
        let (mark, gap) = (upload.mark, matches!(upload.content, Content::Gap(_)));
        let bytes = publish.payload.len() as u64;
        match self.submit(upload).await {
            Ok(pending) => Outcome::Pending { pending, mark, bytes, gap },
            Err(answer) => Outcome::Known(answer),
        }
    }

    async fn submit(&mut self, upload: Upload) -> Result<Pending, Answer> {
        let Upload { mark, lane, content } = upload;
        let log = &self.bridge.log;
        let divider = Divider {
            log,
            routing: &self.bridge.routing,
            edge: &self.edge,
            home: self.home,
            unpacked_max: self.bridge.settings.unpacked_bytes_max,
            clocks: Clocks::new(self.bridge.settings.clock_ahead_max_s),
        };
        let Divided { appends, prints, clamped, inventory } = match content {
            Content::Batch(batch) => divider.batch(batch, &lane, mark.seq, wall_ms()).await?,
            Content::Gap(reason) => {
                let why = brief(&reason);
                tracing::warn!(edge = &*self.edge, ?mark, why, "edge gave records up");
                divider.gap(mark, &lane, &reason, wall_ms()).await?
            }
        };
        self.note_clock(clamped);
        let Mark { epoch, seq, count } = mark;
        let (edge, connection) = (self.edge.clone(), self.registration.connection);
        let guard = Guard::Edge { edge, epoch, seq, count, prints, connection };
        let writes = self.known_edge();
        let transaction = Transaction { appends, guard, writes, ..Transaction::default() };
        let pending = log.submit(self.home, transaction).await?;
        self.first_seen_saved = true;
        if let Some(inventory) = inventory {
            self.bridge.live.said(&self.edge, inventory);
        }
        Ok(pending)
    }

    /// Counts records with an absurd time; the first of an edge is told.
    fn note_clock(&self, clamped: u64) {
        let counter = &self.registration.traffic.clamped;
        if clamped > 0 && counter.fetch_add(clamped, Relaxed) == 0 {
            tracing::warn!(
                edge = &*self.edge,
                records = clamped,
                "an edge's clock is wrong: its records get the time they came, and their own in header edge.time"
            );
        }
    }

    /// The edge's entry in the list of edges, with the first upload of a connection.
    fn known_edge(&self) -> Vec<Write> {
        if self.first_seen_saved {
            return Vec::new();
        }
        let key = super::known_key(&self.edge);
        let value = wall_ms().to_be_bytes().to_vec().into();
        vec![Write::Put(Log::state_key(StateSpace::Meta, &key), value)]
    }
}

/// Reads to the end, or for a moment: closing with bytes unread would reset the connection and take the last answers with it.
pub(super) async fn linger<R: AsyncRead + Unpin>(input: &mut R) {
    let rest = async { while matches!(input.read(&mut [0; 1024]).await, Ok(1..)) {} };
    let _ = timeout(GOODBYE, rest).await;
}

/// What an edge may send besides uploads. Commands to edges are not served yet, so subscriptions are refused one by one.
fn answer_other(packet: Packet) -> Result<Packet, Reason> {
    let refuse = |packet_id, count, reason| SubAck {
        packet_id,
        reasons: vec![reason; count],
        reason_string: None,
        user_properties: Vec::new(),
    };
    match packet {
        Packet::PingReq => Ok(Packet::PingResp),
        Packet::Subscribe(subscribe) => Ok(Packet::SubAck(refuse(
            subscribe.packet_id,
            subscribe.filters.len(),
            Reason::IMPLEMENTATION_SPECIFIC,
        ))),
        Packet::Unsubscribe(unsubscribe) => Ok(Packet::UnsubAck(refuse(
            unsubscribe.packet_id,
            unsubscribe.filters.len(),
            Reason::NO_SUBSCRIPTION_EXISTED,
        ))),
        _ => Err(Reason::PROTOCOL_ERROR),
    }
}

/// Whom the writer tells what came of an upload.
struct Told {
    edge: Arc<str>,
    bridge: Bridge,
    traffic: Arc<Traffic>,
    /// Records that this connection made durable.
    brought: Arc<AtomicU64>,
}

/// Writes replies in order; ends after [`Reply::Last`] and a clash, when the reader is gone, or when the peer takes nothing.
async fn write_replies<W>(mut output: W, mut queue: mpsc::Receiver<Reply>, told: Told)
where
    W: AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::new();
    let mut last = false;
    while !last {
        let reply = if let Ok(reply) = queue.try_recv() {
            reply
        } else {
            if !flush(&mut output, &mut buffer).await {
                return;
            }
            let Some(reply) = queue.recv().await else { break };
            reply
        };
        let packet = match reply {
            Reply::Packet(packet) => packet,
            Reply::Last(goodbye) => {
                last = true;
                goodbye.packet()
            }
            Reply::Upload { packet_id, outcome, window } => {
                let mut epoch = 0;
                let answer = match outcome {
                    Outcome::Known(answer) => answer,
                    Outcome::Pending { mut pending, mark, bytes, gap } => {
                        epoch = mark.epoch;
                        let result = if let Ok(result) = pending.try_recv() {
                            result
                        } else {
                            // What is answered must not wait for what is not.
                            if !flush(&mut output, &mut buffer).await {
                                return;
                            }
                            pending.await.unwrap_or(Err(LogError::Closed))
                        };
                        let answer = Answer::from(result);
                        if answer == Answer::Appended {
                            Traffic::add(&told.brought, u64::from(mark.count));
                            count_appended(&told.traffic, mark, bytes, gap);
                        }
                        answer
                    }
                };
                count(&told.traffic, &answer);
                drop(window);
                last = answer == Answer::Clash;
                match answer {
                    Answer::Clash => told.clash(epoch),
                    answer => Packet::PubAck(answer.to_ack(packet_id)),
                }
            }
        };
        write(&packet, Version::V5, &mut buffer);
    }
    if flush(&mut output, &mut buffer).await {
        let _ = timeout(WRITE_TIMEOUT, output.shutdown()).await;
    }
}

impl Told {
    /// Other records are stored under the epoch and sequences of this upload: the edge has to begin a new epoch.
    fn clash(&self, epoch: i64) -> Packet {
        self.bridge.live.clashed(&self.edge, epoch, wall_ms());
        let mut disconnect = Disconnect::new(Reason::SESSION_TAKEN_OVER);
        disconnect.reason_string = Some(format!("epoch {epoch} is used twice").into());
        disconnect.user_properties = vec![(CLASH_PROPERTY.into(), epoch.to_string().into())];
        Packet::Disconnect(disconnect)
    }
}

async fn flush<W: AsyncWrite + Unpin>(output: &mut W, buffer: &mut BytesMut) -> bool {
    if buffer.is_empty() {
        return true;
    }
    let written = timeout(WRITE_TIMEOUT, output.write_all_buf(buffer)).await;
    matches!(written, Ok(Ok(())))
}

fn count_appended(traffic: &Traffic, mark: Mark, bytes: u64, gap: bool) {
    if gap {
        Traffic::add(&traffic.declared_lost, u64::from(mark.count));
        return;
    }
    Traffic::add(&traffic.records, u64::from(mark.count));
    Traffic::add(&traffic.batches, 1);
    Traffic::add(&traffic.bytes, bytes);
}

fn count(traffic: &Traffic, answer: &Answer) {
    traffic.last_ms.store(wall_ms().unsigned_abs(), Relaxed);
    match answer {
        Answer::Appended => {}
        Answer::Duplicate => Traffic::add(&traffic.duplicates, 1),
        Answer::Gap { .. } => Traffic::add(&traffic.gaps, 1),
        Answer::Clash | Answer::Refused { .. } | Answer::Failed { .. } => {
            Traffic::add(&traffic.refused, 1);
        }
    }
}
