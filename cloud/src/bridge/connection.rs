//! One edge's connection: uploads in, PUBACKs out in the same order, each when its commit is durable.
//!
//! ```text
//! reader: packets -> upload -> divide -> log.submit --\ bounded queue, in order
//! writer:          PUBACK <- answer <- await durable <-/
//! ```
//! Uploads are submitted as they come, so that many are on their way to the store at once. The window is bounded in
//! messages (receive maximum: 0x93 beyond it) and in bytes (the reader waits). Not here: taking over (`live`).

use std::{sync::Arc, time::Duration};

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
        packet::{Disconnect, Packet, PacketId, Publish, Reason, SubAck},
        write::write,
    },
    telemetry::brief,
};

use super::{
    Bridge,
    answer::Answer,
    divide::Divider,
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

/// What the writer does next, in order.
enum Reply {
    Upload {
        packet_id: PacketId,
        outcome: Outcome,
        window: Window,
    },
    Packet(Packet),
    /// DISCONNECT with this reason, and nothing after it.
    Last(Reason),
}

enum Outcome {
    Known(Answer),
    Pending { pending: Pending, mark: Mark, bytes: u64, gap: bool },
}

/// An upload's share of the window, given back when its PUBACK is written.
struct Window {
    _message: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
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
        let mut writer = std::pin::pin!(write_replies(output, queue, traffic));
        let read = async {
            let end = self.read(&mut input, reader, buffer, &replies).await;
            if let Some(reason) = end {
                // The writer may be gone; then nobody needs to be told.
                let _ = replies.send(Reply::Last(reason)).await;
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
        // Closing with bytes unread would reset the connection and take the last answers with it.
        let rest = async { while matches!(input.read(&mut [0; 1024]).await, Ok(1..)) {} };
        let _ = timeout(GOODBYE, rest).await;
    }

    /// Reads until the end; `Some`: what to say in DISCONNECT.
    async fn read<R>(
        &mut self,
        input: &mut R,
        mut reader: Reader,
        mut buffer: BytesMut,
        replies: &mpsc::Sender<Reply>,
    ) -> Option<Reason>
    where
        R: AsyncRead + Unpin,
    {
        let settings = &self.bridge.settings;
        let messages = Arc::new(Semaphore::new(usize::from(settings.receive_maximum)));
        let bytes = Arc::new(Semaphore::new(settings.window_bytes));
        let (taken_over, stop) = (self.registration.taken_over.clone(), self.stop.clone());
        loop {
            loop {
                let packet = match reader.read(&mut buffer) {
                    Ok(Some(packet)) => packet,
                    Ok(None) => break,
                    Err(malformed) => {
                        tracing::warn!(edge = &*self.edge, %malformed, "bridge: malformed packet");
                        return Some(malformed.reason);
                    }
                };
                let reply = match packet {
                    Packet::Publish(publish) => {
                        let Ok(message) = messages.clone().try_acquire_owned() else {
                            return Some(Reason::RECEIVE_MAXIMUM_EXCEEDED);
                        };
                        let share = publish.payload.len().min(self.bridge.settings.window_bytes);
                        let share = bytes.clone().acquire_many_owned(share as u32).await.ok();
                        let window = Window { _message: message, _bytes: share };
                        // QoS 0 has no PUBACK to say no with.
                        let Some(packet_id) = publish.packet_id else {
                            return Some(Reason::QOS_NOT_SUPPORTED);
                        };
                        let outcome = self.publish(&publish).await;
                        Reply::Upload { packet_id, outcome, window }
                    }
                    Packet::Disconnect(_) => return None,
                    other => Reply::Packet(match answer_other(other) {
                        Ok(packet) => packet,
                        Err(reason) => return Some(reason),
                    }),
                };
                if replies.send(reply).await.is_err() {
                    return None;
                }
            }
            buffer.reserve(16 * 1024);
            tokio::select! {
                biased;
                () = taken_over.cancelled() => return Some(Reason::SESSION_TAKEN_OVER),
                () = stop.cancelled() => return Some(Reason::SERVER_SHUTTING_DOWN),
                read = timeout(self.idle, input.read_buf(&mut buffer)) => match read {
                    Ok(Ok(0) | Err(_)) => return None,
                    Ok(Ok(_)) => {}
                    Err(_) => return Some(Reason::KEEP_ALIVE_TIMEOUT),
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
        };
        let appends = match content {
            Content::Batch(batch) => divider.batch(batch).await?,
            Content::Gap(reason) => {
                let why = brief(&reason);
                tracing::warn!(edge = &*self.edge, ?mark, why, "edge gave records up");
                divider.gap(mark, &lane, &reason, wall_ms()).await?
            }
        };
        let Mark { epoch, seq, count } = mark;
        let guard = Guard::Edge { edge: self.edge.clone(), epoch, seq, count };
        let writes = self.known_edge();
        let transaction = Transaction { appends, guard, writes, index: None };
        let pending = log.submit(self.home, transaction).await?;
        self.first_seen_saved = true;
        Ok(pending)
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

/// Writes replies in order; ends after [`Reply::Last`], when the reader is gone, or when the peer takes nothing.
async fn write_replies<W>(mut output: W, mut queue: mpsc::Receiver<Reply>, traffic: Arc<Traffic>)
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
            Reply::Last(reason) => {
                last = true;
                Packet::Disconnect(Disconnect::new(reason))
            }
            Reply::Upload { packet_id, outcome, window } => {
                let answer = match outcome {
                    Outcome::Known(answer) => answer,
                    Outcome::Pending { mut pending, mark, bytes, gap } => {
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
                            count_appended(&traffic, mark, bytes, gap);
                        }
                        answer
                    }
                };
                count(&traffic, &answer);
                drop(window);
                Packet::PubAck(answer.to_ack(packet_id))
            }
        };
        write(&packet, Version::V5, &mut buffer);
    }
    if flush(&mut output, &mut buffer).await {
        let _ = timeout(WRITE_TIMEOUT, output.shutdown()).await;
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
    traffic.last_ms.store(wall_ms().unsigned_abs(), std::sync::atomic::Ordering::Relaxed);
    match answer {
        Answer::Appended => {}
        Answer::Duplicate => Traffic::add(&traffic.duplicates, 1),
        Answer::Gap { .. } => Traffic::add(&traffic.gaps, 1),
        Answer::Refused { .. } | Answer::Failed { .. } => Traffic::add(&traffic.refused, 1),
    }
}
