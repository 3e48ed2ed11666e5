//! `sub`: prints messages as they come, as mosquitto_sub does.
//!
//! Change here: flags, what is printed. Not here: the connection (`client`).

use std::{collections::HashSet, fmt::Write as _, time::Duration};

use bytes::{BufMut as _, BytesMut};
use clap::{ArgAction, Args};
use tokio::time::{Instant, sleep_until};
use tributary_shared::{
    clock::wall_ms,
    mqtt::{
        Packet, PacketId, Qos,
        packet::{Ack, Publish, Reason, SubAck, Subscribe, SubscribeFilter, SubscriptionOptions},
    },
};

use super::{
    Failed,
    client::{Client, Server, qos, said},
    note, say,
};

const EXAMPLES: &str = "\
Examples:
  tributary-edge sub -t 'site/#' -v
  tributary-edge sub -t '$SYS/broker/clients/connected' -C 1
  tributary-edge sub -h gw1.local -p 8883 --cafile ca.pem -u ann -P ... -t 'alarm/+' -F '%U %t %p'

Exit codes: 0 done or Ctrl-C, 1 no connection, 2 wrong arguments, 3 refused by the broker, 27 time over.";

/// Arguments.
#[derive(Debug, Clone, Args)]
#[command(disable_help_flag = true, after_help = EXAMPLES)]
pub struct Sub {
    #[command(flatten)]
    server: Server,
    /// Topic filter, as `site/+/temp`, `site/#`, `$SYS/#` or `$share/group/site/#`; may be repeated.
    #[arg(short = 't', long = "topic", value_name = "FILTER", required = true)]
    topics: Vec<String>,
    /// Highest quality of service: 0, 1 or 2.
    #[arg(short = 'q', long, value_name = "QOS", default_value = "0", value_parser = qos)]
    qos: Qos,
    /// Print the topic before each message.
    #[arg(short = 'v', long)]
    verbose: bool,
    /// End after so many messages.
    #[arg(short = 'C', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds, with exit code 27.
    #[arg(short = 'W', value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    wait: Option<u64>,
    /// What to print of a message: %t topic, %p payload, %x payload as hexadecimal, %l its bytes, %q QoS, %r 1 if retained,
    /// %U seconds since 1970; \n, \t.
    #[arg(short = 'F', value_name = "FORMAT", conflicts_with = "verbose")]
    format: Option<String>,
    /// No line end after a message.
    #[arg(short = 'N')]
    no_newline: bool,
    /// Leave out messages that were retained before.
    #[arg(short = 'R')]
    no_retained: bool,
    /// Keep the session when this ends, and go on with it; needs --id.
    #[arg(short = 'c', long = "disable-clean-session", requires = "id")]
    keep: bool,
    /// Print help.
    #[arg(long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

impl Sub {
    /// Until the count is reached, the time is over, or Ctrl-C.
    pub async fn run(&self) -> Result<(), Failed> {
        let until = self.wait.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut client = Client::connect(&self.server, !self.keep).await?;
        self.subscribe(&mut client).await?;
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut unreleased: HashSet<PacketId> = HashSet::new();
        while left > 0 {
            let packet = tokio::select! {
                packet = client.next() => packet?,
                () = at(until) => {
                    client.leave().await?;
                    return Err(Failed::late("the time is over"));
                }
                _ = tokio::signal::ctrl_c() => break,
            };
            match packet {
                Packet::Publish(publish) => {
                    let again = publish.qos == Qos::ExactlyOnce
                        && publish.packet_id.is_some_and(|id| !unreleased.insert(id));
                    if !(again || self.no_retained && publish.retain) {
                        left -= 1;
                        if !say(&self.text(&publish))? {
                            break;
                        }
                    }
                    acknowledge(&mut client, &publish).await?;
                }
                Packet::PubRel(ack) => {
                    unreleased.remove(&ack.packet_id);
                    client.send(&Packet::PubComp(Ack::new(ack.packet_id, Reason::SUCCESS))).await?;
                }
                Packet::SubAck(answer) => self.granted(&answer)?,
                _ => {}
            }
        }
        client.leave().await
    }

    async fn subscribe(&self, client: &mut Client) -> Result<(), Failed> {
        let options = SubscriptionOptions { qos: self.qos, ..SubscriptionOptions::default() };
        let filter = |text: &String| SubscribeFilter { filter: text.as_str().into(), options };
        let subscribe = Subscribe {
            packet_id: client.new_id(),
            filters: self.topics.iter().map(filter).collect(),
            subscription_id: None,
            user_properties: Vec::new(),
        };
        client.send(&Packet::Subscribe(subscribe)).await
    }

    fn granted(&self, answer: &SubAck) -> Result<(), Failed> {
        let all = self.topics.iter().zip(&answer.reasons);
        let refused = all.filter(|(_, reason)| reason.is_error());
        let refused: Vec<String> = refused
            .map(|(topic, reason)| said(&format!("subscription to {topic} refused"), *reason, ""))
            .collect();
        if refused.len() == self.topics.len() {
            return Err(Failed::refused(refused.join("; ")));
        }
        for text in &refused {
            note(text);
        }
        Ok(())
    }

    fn text(&self, publish: &Publish) -> BytesMut {
        let mut out = BytesMut::new();
        if let Some(format) = &self.format {
            fill(format, publish, &mut out);
        } else {
            if self.verbose {
                out.put_slice(publish.topic.as_bytes());
                out.put_u8(b' ');
            }
            out.put_slice(&publish.payload);
        }
        if !self.no_newline {
            out.put_u8(b'\n');
        }
        out
    }
}

async fn acknowledge(client: &mut Client, publish: &Publish) -> Result<(), Failed> {
    let Some(id) = publish.packet_id else { return Ok(()) };
    let ack = Ack::new(id, Reason::SUCCESS);
    let packet = match publish.qos {
        Qos::ExactlyOnce => Packet::PubRec(ack),
        _ => Packet::PubAck(ack),
    };
    client.send(&packet).await
}

/// Puts a message into a format.
fn fill(format: &str, publish: &Publish, out: &mut BytesMut) {
    let mut rest = format.chars();
    while let Some(one) = rest.next() {
        let number = match (one, rest.clone().next()) {
            ('%', Some('t')) => publish.topic.to_string(),
            ('%', Some('p')) => {
                out.put_slice(&publish.payload);
                String::new()
            }
            ('%', Some('x')) => publish.payload.iter().fold(String::new(), |mut text, byte| {
                // Writing to a string does not fail.
                let _ = write!(text, "{byte:02x}");
                text
            }),
            ('%', Some('l')) => publish.payload.len().to_string(),
            ('%', Some('q')) => (publish.qos as u8).to_string(),
            ('%', Some('r')) => u8::from(publish.retain).to_string(),
            ('%', Some('U')) => format!("{:.3}", wall_ms() as f64 / 1000.0),
            ('%', Some('%')) => "%".to_owned(),
            ('\\', Some('n')) => "\n".to_owned(),
            ('\\', Some('t')) => "\t".to_owned(),
            ('\\', Some('\\')) => "\\".to_owned(),
            _ => {
                out.put_slice(one.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
        };
        out.put_slice(number.as_bytes());
        rest.next();
    }
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_format_shows_what_it_names_and_leaves_the_rest() {
        let publish = Publish {
            topic: "a/b".into(),
            payload: Bytes::from_static(b"\xffx"),
            qos: Qos::AtLeastOnce,
            retain: true,
            ..Publish::default()
        };
        for (format, expected) in [
            ("%t %p", &b"a/b \xffx"[..]),
            ("%l\\t%q%r%%", b"2\t11%"),
            ("%x\\\\n %z %", b"ff78\\n %z %"),
        ] {
            let mut out = BytesMut::new();
            fill(format, &publish, &mut out);
            assert_eq!(&out[..], expected, "{format}");
        }
    }
}
