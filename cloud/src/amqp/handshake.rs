//! From the first byte to `connection.open-ok`: protocol header, login, tuning, virtual host.
//!
//! Frames are limited to 8 KiB and all of it to [`TIME`] until then. A wrong protocol header is answered with ours.

use std::{io, net::SocketAddr, sync::atomic::Ordering, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tributary_shared::amqp::{
    Code, Decoder, Frame, FrameKind, Method, PROTOCOL_HEADER, Refusal, Table, Value,
    frame::{FRAME_MIN, PRE_AUTH_FRAME_MAX, write_method},
};

use super::{Shared, VIRTUAL_HOST, login};

/// For all of it.
pub(super) const TIME: Duration = Duration::from_secs(10);
/// Before a refused login is told, so that guessing is slow.
const REFUSED_DELAY: Duration = Duration::from_millis(500);

/// What was agreed.
#[derive(Debug, Clone)]
pub(super) struct Agreed {
    pub(super) user: String,
    pub(super) frame_max: u32,
    pub(super) channel_max: u16,
    /// `None`: none.
    pub(super) heartbeat: Option<Duration>,
    /// The client wants to know when the server cancels a consumer.
    pub(super) cancel_notify: bool,
}

/// Why it did not come to that.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// To be told by `connection.close`.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not told.
    #[error("{0}")]
    Silent(&'static str),
}

/// A stream and what was read of it and not used yet.
pub(super) struct Stream<R, W> {
    pub(super) reader: R,
    pub(super) writer: W,
    pub(super) buffer: BytesMut,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Stream<R, W> {
    /// The next frame.
    pub(super) async fn frame(&mut self, decoder: Decoder) -> Result<Frame, Failed> {
        loop {
            if let Some(frame) = decoder.next(&mut self.buffer)? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.reader.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Writes one method on channel 0.
    pub(super) async fn send(&mut self, method: &Method) -> io::Result<()> {
        let mut out = Vec::with_capacity(512);
        write_method(&mut out, 0, method);
        self.writer.write_all(&out).await
    }

    /// The next method on channel 0; heartbeats are no methods.
    async fn method(&mut self) -> Result<Method, Failed> {
        loop {
            let frame = self.frame(Decoder { frame_max: PRE_AUTH_FRAME_MAX }).await?;
            match (frame.kind, frame.channel) {
                (FrameKind::Heartbeat, 0) => {}
                (FrameKind::Method, 0) => {
                    return Method::decode(frame.payload)
                        .map_err(|(why, culprit)| why.refusal().by(culprit).into());
                }
                (FrameKind::Method, _) => {
                    return Err(Refusal::new(Code::ChannelError, "connection is not open").into());
                }
                _ => {
                    return Err(Refusal::new(Code::UnexpectedFrame, "expected method frame").into());
                }
            }
        }
    }

    /// Does it.
    pub(super) async fn handshake(
        &mut self,
        shared: &Shared,
        peer: SocketAddr,
    ) -> Result<Agreed, Failed> {
        while self.buffer.len() < PROTOCOL_HEADER.len() {
            let is_prefix = PROTOCOL_HEADER.starts_with(&self.buffer);
            if !is_prefix {
                break;
            }
            self.fill().await?;
        }
        if !self.buffer.starts_with(&PROTOCOL_HEADER) {
            self.writer.write_all(&PROTOCOL_HEADER).await?;
            self.writer.shutdown().await?;
            return Err(Failed::Silent("wrong protocol header"));
        }
        self.buffer.advance(PROTOCOL_HEADER.len());
        self.send(&start()).await?;
        let (user, capabilities) = self.login(shared, peer).await?;
        let (channel_max, frame_max, heartbeat_s) = self.tune(shared).await?;
        match self.method().await? {
            Method::ConnectionOpen { virtual_host, .. } if virtual_host == VIRTUAL_HOST => {}
            Method::ConnectionOpen { virtual_host, .. } => {
                let detail = format!("vhost {virtual_host} not found");
                return Err(Refusal::new(Code::NotAllowed, detail).by((10, 40)).into());
            }
            other => return Err(out_of_order(&other)),
        }
        let heartbeat = (heartbeat_s > 0).then(|| Duration::from_secs(heartbeat_s.into()));
        let cancel_notify = has(&capabilities, "consumer_cancel_notify");
        Ok(Agreed { user, frame_max, channel_max, heartbeat, cancel_notify })
    }

    async fn login(
        &mut self,
        shared: &Shared,
        peer: SocketAddr,
    ) -> Result<(String, Table), Failed> {
        let method = self.method().await?;
        let Method::ConnectionStartOk { client_properties, mechanism, response, .. } = method
        else {
            return Err(out_of_order(&method));
        };
        let capabilities = match client_properties.get("capabilities") {
            Some(Value::Table(capabilities)) => capabilities.clone(),
            _ => Table::default(),
        };
        let credentials = login::read(&mechanism, &response);
        if let Some(credentials) = credentials
            && login::allowed(&credentials, peer.ip())
        {
            return Ok((credentials.user, capabilities));
        }
        shared.counters.logins_refused.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(REFUSED_DELAY).await;
        if !has(&capabilities, "authentication_failure_close") {
            return Err(Failed::Silent("login refused"));
        }
        let known = login::MECHANISMS.split(' ').any(|known| *mechanism == *known);
        let detail = if known {
            format!(
                "Login was refused using authentication mechanism {mechanism}. For details see the broker logfile."
            )
        } else {
            format!("unknown authentication mechanism '{mechanism}'")
        };
        Err(Refusal::new(Code::AccessRefused, detail).into())
    }

    /// Channels, frame size, heartbeat seconds.
    async fn tune(&mut self, shared: &Shared) -> Result<(u16, u32, u16), Failed> {
        let settings = &shared.settings;
        let offered = settings.frame_max;
        let tune = Method::ConnectionTune {
            channel_max: settings.channel_max,
            frame_max: offered,
            heartbeat: settings.heartbeat_s,
        };
        self.send(&tune).await?;
        let method = self.method().await?;
        let Method::ConnectionTuneOk { channel_max, frame_max, heartbeat } = method else {
            return Err(out_of_order(&method));
        };
        let refuse = |what: &str, value: u32, why: String| {
            let detail = format!("negotiated {what} = {value} is {why}");
            Failed::from(Refusal::new(Code::NotAllowed, detail).by((10, 31)))
        };
        let higher = |max: u32| format!("higher than the maximum allowed value ({max})");
        if frame_max != 0 && frame_max < FRAME_MIN {
            let why = format!("lower than the minimum allowed value ({FRAME_MIN})");
            return Err(refuse("frame_max", frame_max, why));
        }
        if frame_max > offered {
            return Err(refuse("frame_max", frame_max, higher(offered)));
        }
        if settings.channel_max != 0 && channel_max > settings.channel_max {
            return Err(refuse(
                "channel_max",
                channel_max.into(),
                higher(settings.channel_max.into()),
            ));
        }
        let channel_max = if channel_max == 0 { settings.channel_max } else { channel_max };
        let channel_max = if channel_max == 0 { u16::MAX } else { channel_max };
        Ok((channel_max, if frame_max == 0 { offered } else { frame_max }, heartbeat))
    }
}

fn out_of_order(method: &Method) -> Failed {
    let (class, number) = method.id();
    let detail = format!("method {class}.{number} is not expected here");
    Refusal::new(Code::CommandInvalid, detail).by((class, number)).into()
}

fn has(capabilities: &Table, name: &str) -> bool {
    matches!(capabilities.get(name), Some(Value::Bool(true)))
}

/// Clients look at `product`, `version` and `capabilities` to decide what they may use.
fn start() -> Method {
    let mut capabilities = Table::default();
    for name in [
        "publisher_confirms",
        "exchange_exchange_bindings",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "authentication_failure_close",
        "per_consumer_qos",
    ] {
        capabilities.push(name, Value::Bool(true));
    }
    let server_properties = Table::default()
        .with("capabilities", Value::Table(capabilities))
        .with("cluster_name", Value::text("tributary"))
        .with("copyright", Value::text("Tributary contributors"))
        .with(
            "information",
            Value::text("AMQP 0-9-1 over one durable log. Licensed under Apache-2.0."),
        )
        .with("platform", Value::text(std::env::consts::OS))
        .with("product", Value::text("Tributary"))
        .with("version", Value::text(env!("CARGO_PKG_VERSION")));
    Method::ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties,
        mechanisms: login::MECHANISMS.into(),
        locales: "en_US".into(),
    }
}
