//! `pub`: publishes a message, or a line of stdin each, as mosquitto_pub does. What it reports as done the broker has
//! acknowledged (QoS 1 and 2).
//!
//! Change here: flags, where messages come from. Not here: the connection (`client`).

use std::{
    collections::HashMap,
    io::{BufRead as _, Read as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use bytes::Bytes;
use clap::{ArgAction, ArgGroup, Args};
use tokio::{sync::mpsc, time::timeout};
use tributary_shared::mqtt::{
    Packet, PacketId, Qos,
    packet::{Ack, Publish, Reason},
};

use super::{
    Failed,
    client::{Client, Server, qos, said},
};

/// Messages that may be unacknowledged.
const WINDOW: usize = 20;

/// For the last acknowledgements.
const PATIENCE: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  tributary-edge pub -t site/a/temp -q 1 -m 21.5
  tributary-edge pub -t site/a/temp -r -n          delete the retained message
  sensors | tributary-edge pub -t site/a/log -q 1 -l

Exit codes: 0 done, with -q 1 and 2 acknowledged; 1 no connection, 2 wrong arguments, 3 refused by the broker,
27 no acknowledgement for half a minute.";

/// Arguments.
#[derive(Debug, Clone, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES, group = ArgGroup::new("what").required(true))]
pub struct Pub {
    #[command(flatten)]
    server: Server,
    /// Topic.
    #[arg(short = 't', long, value_name = "TOPIC")]
    topic: String,
    /// The message.
    #[arg(short = 'm', long, value_name = "TEXT", group = "what", allow_hyphen_values = true)]
    message: Option<String>,
    /// A file as the message.
    #[arg(short = 'f', long, value_name = "FILE", group = "what")]
    file: Option<PathBuf>,
    /// All of stdin as the message.
    #[arg(short = 's', long, group = "what")]
    stdin_file: bool,
    /// A message for each line of stdin, as they come.
    #[arg(short = 'l', long, group = "what")]
    stdin_line: bool,
    /// An empty message; with --retain it deletes the topic's retained one.
    #[arg(short = 'n', long, group = "what")]
    null_message: bool,
    /// Quality of service: 0, 1 or 2. 1 and 2 wait for the broker's acknowledgement.
    #[arg(short = 'q', long, value_name = "QOS", default_value = "0", value_parser = qos)]
    qos: Qos,
    /// The broker keeps it for later subscribers.
    #[arg(short = 'r', long)]
    retain: bool,
    /// Print help.
    #[arg(long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

impl Pub {
    /// Until everything is acknowledged.
    pub async fn run(&self) -> Result<(), Failed> {
        let mut messages = if self.stdin_line { lines() } else { self.one()? };
        let mut client = Client::connect(&self.server, true).await?;
        let mut flight = HashMap::new();
        let window = usize::from(client.connack.properties.receive_maximum.unwrap_or(u16::MAX));
        let window = window.min(WINDOW);
        loop {
            tokio::select! {
                message = messages.recv(), if flight.len() < window => match message {
                    Some(message) => self.send(&mut client, &mut flight, message?).await?,
                    None => break,
                },
                packet = client.next() => answer(&mut client, &mut flight, packet?).await?,
            }
        }
        let rest = timeout(PATIENCE, async {
            while !flight.is_empty() {
                let packet = client.next().await?;
                answer(&mut client, &mut flight, packet).await?;
            }
            Ok(())
        });
        rest.await.unwrap_or_else(|_| Err(Failed::late("no acknowledgement")))?;
        client.leave().await
    }

    fn one(&self) -> Result<mpsc::Receiver<Result<Bytes, Failed>>, Failed> {
        let bytes = if let Some(text) = &self.message {
            text.as_bytes().to_vec()
        } else if let Some(file) = &self.file {
            let cannot =
                |error| Failed::cannot(format_args!("cannot read {}: {error}", file.display()));
            std::fs::read(file).map_err(cannot)?
        } else if self.stdin_file {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map_err(unread)?;
            bytes
        } else {
            Vec::new()
        };
        let (send, one) = mpsc::channel(1);
        // There is room for one.
        let _ = send.try_send(Ok(Bytes::from(bytes)));
        Ok(one)
    }

    async fn send(
        &self,
        client: &mut Client,
        flight: &mut HashMap<PacketId, Qos>,
        payload: Bytes,
    ) -> Result<(), Failed> {
        let packet_id = (self.qos != Qos::AtMostOnce).then(|| client.new_id());
        flight.extend(packet_id.map(|id| (id, self.qos)));
        let publish = Publish {
            qos: self.qos,
            retain: self.retain,
            topic: self.topic.as_str().into(),
            packet_id,
            payload,
            ..Publish::default()
        };
        client.send(&Packet::Publish(publish)).await
    }
}

/// Lines as they come; the reading thread waits until one is taken.
fn lines() -> mpsc::Receiver<Result<Bytes, Failed>> {
    let (send, lines) = mpsc::channel(1);
    thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n') {
            let line = line.map(Bytes::from).map_err(unread);
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn unread(error: std::io::Error) -> Failed {
    Failed::cannot(format_args!("cannot read stdin: {error}"))
}

async fn answer(
    client: &mut Client,
    flight: &mut HashMap<PacketId, Qos>,
    packet: Packet,
) -> Result<(), Failed> {
    let (ack, last) = match packet {
        Packet::PubAck(ack) | Packet::PubComp(ack) => (ack, true),
        Packet::PubRec(ack) => (ack, false),
        _ => return Ok(()),
    };
    if ack.reason.is_error() {
        let more = ack.reason_string.as_deref().unwrap_or("");
        return Err(Failed::refused(said("message refused", ack.reason, more)));
    }
    if last {
        flight.remove(&ack.packet_id);
        return Ok(());
    }
    client.send(&Packet::PubRel(Ack::new(ack.packet_id, Reason::SUCCESS))).await
}
