//! One client: bytes in, commands to the virtual host; its events, bytes out; heartbeats, and the ways to close.
//!
//! One task does both directions, so nothing needs a lock. It stops reading while too much waits to be written, which in
//! the end stops the client's writing. Not here: what frames may follow (`channel`), encoding (`outgoing`).

use std::{collections::VecDeque, io, net::SocketAddr, sync::atomic::Ordering, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, interval_at, timeout, timeout_at},
};
use tributary_shared::{
    amqp::{
        Code, Decoder, Frame, FrameKind, Method, PROTOCOL_HEADER, Refusal, frame::write_heartbeat,
    },
    net::Admitted,
};

use super::{
    Shared,
    channel::{Channels, Step},
    handshake::{self, Agreed, Failed, Stream},
    outgoing::Outgoing,
};
use crate::queue::{Command, ConnectionId, Event, Outbox, limits};

/// Bytes that wait for the socket before events are left in the outbox.
const OUT_BYTES: usize = 256 * 1024;
/// Bytes of events that wait before nothing more is read.
const OUTBOX_BYTES: usize = 4 * 1024 * 1024;
/// Space for one read.
const READ_BYTES: usize = 64 * 1024;
/// For the peer's answer to our `connection.close`.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// The same when the whole head stops: the process must end soon.
const STOP_TIME: Duration = Duration::from_secs(1);

/// Serves one client to its end.
pub(super) async fn run<R, W>(
    shared: &Shared,
    reader: R,
    writer: W,
    peer: SocketAddr,
    mut admitted: Admitted,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut stream = Stream { reader, writer, buffer: BytesMut::with_capacity(8192) };
    let greeted = tokio::select! {
        greeted = timeout(handshake::TIME, stream.handshake(shared, peer)) => greeted,
        () = shared.stop.cancelled() => return Ok(()),
    };
    let agreed = match greeted {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(Failed::Io(error))) => return Err(error),
        Ok(Err(Failed::Refused(refusal))) => {
            shared.counters.faults.fetch_add(1, Ordering::Relaxed);
            return refuse(stream, &refusal).await;
        }
        Ok(Err(failed)) => {
            shared.counters.faults.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, %failed, "amqp handshake");
            return Ok(());
        }
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    admitted.handshake_done();
    shared.counters.opened.fetch_add(1, Ordering::Relaxed);
    let mut connection = Connection::new(shared, agreed);
    let attach = Command::Attach {
        connection: connection.id,
        outbox: connection.outbox.clone(),
        user: connection.agreed.user.as_str().into(),
    };
    if !shared.vhost.send(vec![attach]).await {
        return Ok(());
    }
    connection.out.method(0, &Method::ConnectionOpenOk { known_hosts: "".into() });
    let ended = connection.serve(stream).await;
    // Whatever happened: what this client held goes back.
    let mut commands = std::mem::take(&mut connection.commands);
    commands.push(Command::Detach(connection.id));
    shared.vhost.send(commands).await;
    ended
}

/// For a client whose virtual host is served nowhere now: it is told so once it has said that it speaks AMQP.
pub(super) async fn turn_away<R, W>(reader: R, writer: W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut stream = Stream { reader, writer, buffer: BytesMut::new() };
    let mut header = [0; PROTOCOL_HEADER.len()];
    timeout(handshake::TIME, stream.reader.read_exact(&mut header)).await??;
    if header != PROTOCOL_HEADER {
        return stream.writer.shutdown().await;
    }
    let detail = "no node of the cluster serves the virtual host at the moment: connect again";
    refuse(stream, &Refusal::new(Code::ConnectionForced, detail)).await
}

/// Tells a refusal of the handshake, and waits a little for the answer so that the peer surely reads it.
async fn refuse<R, W>(mut stream: Stream<R, W>, refusal: &Refusal) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    stream.send(&close(refusal)).await?;
    let deadline = Instant::now() + CLOSE_TIME;
    let decoder = Decoder { frame_max: tributary_shared::amqp::frame::PRE_AUTH_FRAME_MAX };
    while let Ok(Ok(frame)) = timeout_at(deadline, stream.frame(decoder)).await {
        if let Ok(Method::ConnectionCloseOk {}) = Method::decode(frame.payload) {
            break;
        }
    }
    stream.writer.shutdown().await
}

fn close(refusal: &Refusal) -> Method {
    Method::ConnectionClose {
        reply_code: refusal.code as u16,
        reply_text: refusal.text().into(),
        class_id: refusal.culprit.0,
        method_id: refusal.culprit.1,
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// We sent `connection.close`; everything but its answer is ignored until then.
    Closing(Instant),
    /// Nothing more is read; what waits is written.
    Ending(Instant),
}

struct Connection<'a> {
    shared: &'a Shared,
    id: ConnectionId,
    agreed: Agreed,
    outbox: Outbox,
    events: VecDeque<Event>,
    channels: Channels,
    out: Outgoing,
    commands: Vec<Command>,
    phase: Phase,
    read_at: Instant,
    wrote_at: Instant,
}

impl<'a> Connection<'a> {
    fn new(shared: &'a Shared, agreed: Agreed) -> Self {
        let now = Instant::now();
        Self {
            shared,
            id: shared.next_connection(),
            channels: Channels::new(agreed.channel_max, shared.settings.max_message_bytes),
            out: Outgoing::new(agreed.frame_max, agreed.cancel_notify),
            agreed,
            outbox: Outbox::default(),
            events: VecDeque::new(),
            commands: Vec::new(),
            phase: Phase::Open,
            read_at: now,
            wrote_at: now,
        }
    }

    async fn serve<R, W>(&mut self, stream: Stream<R, W>) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let Stream { mut reader, mut writer, mut buffer } = stream;
        let period = self.agreed.heartbeat.map_or(CLOSE_TIME, |heartbeat| heartbeat / 2);
        let mut ticks = interval_at(Instant::now() + period, period);
        let outbox = self.outbox.clone();
        self.frames(&mut buffer);
        loop {
            self.encode();
            if !self.commands.is_empty() {
                let commands = std::mem::take(&mut self.commands);
                if !self.shared.vhost.send(commands).await {
                    self.end_by(&Refusal::new(Code::ConnectionForced, "virtual host is gone"));
                }
            }
            let until = match self.phase {
                Phase::Open => None,
                Phase::Ending(_) if self.out.waiting() == 0 => return writer.shutdown().await,
                Phase::Closing(until) | Phase::Ending(until) => Some(until),
            };
            let may_read = !matches!(self.phase, Phase::Ending(_))
                && self.out.waiting() < 4 * OUT_BYTES
                && self.outbox.bytes() < OUTBOX_BYTES;
            buffer.reserve(READ_BYTES);
            tokio::select! {
                read = reader.read_buf(&mut buffer), if may_read => {
                    if read? == 0 {
                        return Ok(());
                    }
                    self.read_at = Instant::now();
                    self.frames(&mut buffer);
                }
                written = writer.write(self.out.bytes.get(self.out.written..).unwrap_or_default()),
                    if self.out.waiting() > 0 => self.written(written?),
                () = outbox.wait(), if self.events.is_empty() => self.events.extend(self.outbox.take()),
                now = ticks.tick() => if self.tick(now) { return Err(io::ErrorKind::TimedOut.into()) },
                () = self.shared.stop.cancelled(), if self.phase == Phase::Open => {
                    let detail = "broker forced connection closure with reason 'shutdown'";
                    self.end_by(&Refusal::new(Code::ConnectionForced, detail));
                }
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            if outbox.is_closed() && self.phase == Phase::Open {
                self.end_by(&Refusal::new(Code::ConnectionForced, "virtual host is gone"));
            }
        }
    }

    /// As many events as fit.
    fn encode(&mut self) {
        while self.out.waiting() < OUT_BYTES {
            let Some(event) = self.events.pop_front() else { return };
            if self.phase != Phase::Open {
                continue;
            }
            if let Some(refusal) = self.out.event(event, &mut self.channels) {
                self.fault(&refusal);
            }
        }
    }

    /// Gives credit back once enough of it is on its way.
    fn written(&mut self, n: usize) {
        self.wrote_at = Instant::now();
        self.out.advance(n);
        if self.out.waiting() == 0 && self.out.delivered >= limits::CREDIT_BYTES / 4 {
            let delivered = std::mem::take(&mut self.out.delivered);
            self.commands.push(Command::Written(self.id, delivered));
        }
    }

    /// Sends a heartbeat if nothing was sent; `true`: the peer has been silent for two.
    fn tick(&mut self, now: Instant) -> bool {
        let Some(heartbeat) = self.agreed.heartbeat else { return false };
        if now - self.wrote_at >= heartbeat / 2 && self.out.waiting() == 0 {
            write_heartbeat(&mut self.out.bytes);
        }
        // While nothing is read on purpose, silence is ours.
        now - self.read_at > heartbeat * 2 && self.outbox.bytes() < OUTBOX_BYTES
    }

    fn frames(&mut self, buffer: &mut BytesMut) {
        let decoder = Decoder { frame_max: self.agreed.frame_max };
        while !matches!(self.phase, Phase::Ending(_)) {
            let taken = match decoder.next(buffer) {
                Ok(None) => return,
                Ok(Some(frame)) => self.frame(frame),
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = taken {
                if self.phase == Phase::Open {
                    self.fault(&refusal);
                } else {
                    // Broken bytes while closing: there is no frame border to find any more.
                    self.phase = Phase::Ending(Instant::now() + CLOSE_TIME);
                }
                if refusal.code == Code::FrameError {
                    buffer.clear();
                }
            }
        }
    }

    fn frame(&mut self, frame: Frame) -> Result<(), Refusal> {
        if self.phase != Phase::Open {
            if frame.kind == FrameKind::Method && frame.channel == 0 {
                match Method::decode(frame.payload) {
                    Ok(Method::ConnectionCloseOk {}) => self.end(),
                    Ok(Method::ConnectionClose { .. }) => {
                        self.out.method(0, &Method::ConnectionCloseOk {});
                        self.end();
                    }
                    _ => {}
                }
            }
            return Ok(());
        }
        match (frame.kind, frame.channel) {
            (FrameKind::Heartbeat, 0) if frame.payload.is_empty() => Ok(()),
            (FrameKind::Heartbeat, 0) => {
                Err(Refusal::new(Code::FrameError, "heartbeat with a payload"))
            }
            (FrameKind::Method, 0) => self.method(frame),
            (_, 0) => Err(Refusal::new(Code::UnexpectedFrame, "content on channel 0")),
            (_, channel) => {
                let step = self.channels.frame(frame)?;
                self.step(channel, step);
                Ok(())
            }
        }
    }

    fn step(&mut self, channel: u16, step: Step) {
        let connection = self.id;
        match step {
            Step::Wait => {}
            Step::Method(method) => {
                self.commands.push(Command::Method { connection, channel, method });
            }
            Step::Publish(publish) => {
                self.commands.push(Command::Publish { connection, channel, publish });
            }
            Step::Answer(method) => self.out.method(channel, &method),
            Step::Close(refusal) => {
                self.out.close_channel(channel, &refusal);
                self.commands.push(Command::Abandon(connection, channel));
            }
        }
    }

    /// A method on channel 0.
    fn method(&mut self, frame: Frame) -> Result<(), Refusal> {
        let method =
            Method::decode(frame.payload).map_err(|(why, culprit)| why.refusal().by(culprit))?;
        match method {
            Method::ConnectionClose { .. } => {
                self.out.method(0, &Method::ConnectionCloseOk {});
                self.end();
            }
            Method::ConnectionUpdateSecret { .. } => {
                self.out.method(0, &Method::ConnectionUpdateSecretOk {});
            }
            Method::ConnectionCloseOk {} => {}
            other => {
                let (class, number) = other.id();
                let detail = format!("method {class}.{number} is not expected on channel 0");
                return Err(Refusal::new(Code::CommandInvalid, detail).by((class, number)));
            }
        }
        Ok(())
    }

    /// The peer did wrong.
    fn fault(&mut self, refusal: &Refusal) {
        self.shared.counters.faults.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%refusal, "amqp connection closed");
        self.end_by(refusal);
    }

    fn end_by(&mut self, refusal: &Refusal) {
        if self.phase == Phase::Open {
            self.out.method(0, &close(refusal));
            let time = if self.shared.stop.is_cancelled() { STOP_TIME } else { CLOSE_TIME };
            self.phase = Phase::Closing(Instant::now() + time);
        }
    }

    fn end(&mut self) {
        self.phase = Phase::Ending(Instant::now() + CLOSE_TIME);
    }
}
