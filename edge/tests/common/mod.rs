//! The edge as a process, and a blocking MQTT client that shows every packet.
#![allow(missing_docs, unreachable_pub, dead_code, reason = "shared by test programs")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that fails, fails"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    num::NonZeroU16,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tributary_shared::mqtt::{
    Packet, Qos, Reader, Version,
    packet::{Ack, ConnAck, Connect, Publish, Subscribe, SubscribeFilter, SubscriptionOptions},
    write::write,
};

/// A running edge; killed when dropped.
pub struct Edge {
    child: Child,
    pub mqtt: SocketAddr,
    pub admin: SocketAddr,
    /// All that it said of itself when it was ready.
    pub ready: serde_json::Value,
}

impl Edge {
    pub fn start(data: &Path, more: &[&str]) -> Self {
        let mut child =
            command(data, more).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let json = line.strip_prefix("ready ").unwrap_or_else(|| panic!("said {line:?}"));
        let ready: serde_json::Value = serde_json::from_str(json).unwrap();
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        Self { mqtt: address("mqtt"), admin: address("admin"), ready, child }
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    /// SIGHUP.
    pub fn hang_up(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    }

    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `serve` on free ports of loopback.
pub fn command(data: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tributary-edge"));
    command.arg("serve").arg("--data").arg(data);
    for (flag, value) in [("--id", "gw1"), ("--mqtt", "127.0.0.1:0"), ("--admin", "127.0.0.1:0")] {
        if !more.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.args(more);
    command
}

/// One connection of version 5.
pub struct Client {
    stream: TcpStream,
    reader: Reader,
    input: BytesMut,
    next_id: u16,
    pub connack: ConnAck,
}

impl Client {
    /// A session that survives its connection.
    pub fn connect(address: SocketAddr, id: &str, clean_start: bool) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Self {
            stream,
            reader: Reader::client(Version::V5, 1 << 20),
            input: BytesMut::new(),
            next_id: 1,
            connack: ConnAck {
                session_present: false,
                reason: tributary_shared::mqtt::Reason::SUCCESS,
                properties: tributary_shared::mqtt::packet::ConnAckProperties::default(),
            },
        };
        client.send(&Packet::Connect(Box::new(Connect {
            version: Version::V5,
            client_id: id.into(),
            clean_start,
            keep_alive: 60,
            will: None,
            user_name: None,
            password: None,
            session_expiry: Some(3600),
            receive_maximum: None,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            user_properties: Vec::new(),
            authentication_method: None,
            authentication_data: None,
        })));
        let Packet::ConnAck(connack) = client.packet() else { panic!("no CONNACK first") };
        client.connack = *connack;
        client
    }

    pub fn send(&mut self, packet: &Packet) {
        let mut out = BytesMut::new();
        write(packet, Version::V5, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// The next packet.
    pub fn packet(&mut self) -> Packet {
        loop {
            if let Some(packet) = self.reader.read(&mut self.input).unwrap() {
                return packet;
            }
            let mut bytes = [0; 16 * 1024];
            let read = self.stream.read(&mut bytes).unwrap();
            assert!(read > 0, "closed by the edge");
            self.input.extend_from_slice(&bytes[..read]);
        }
    }

    pub fn subscribe(&mut self, filter: &str, qos: Qos) {
        let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
        let filters = vec![SubscribeFilter { filter: filter.into(), options }];
        let packet_id = self.id();
        self.send(&Packet::Subscribe(Subscribe {
            packet_id,
            filters,
            subscription_id: None,
            user_properties: Vec::new(),
        }));
        assert!(matches!(self.packet(), Packet::SubAck(_)));
    }

    fn id(&mut self) -> NonZeroU16 {
        self.next_id += 1;
        NonZeroU16::new(self.next_id).unwrap()
    }

    /// Publishes, at QoS 1 and 2 until the first acknowledgement, which it answers.
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: Qos, retain: bool) -> Option<Ack> {
        let packet_id = (qos != Qos::AtMostOnce).then(|| self.id());
        self.send(&Packet::Publish(Publish {
            qos,
            retain,
            topic: topic.into(),
            packet_id,
            payload: Bytes::copy_from_slice(payload),
            ..Publish::default()
        }));
        packet_id.map(|id| match self.packet() {
            Packet::PubAck(ack) | Packet::PubRec(ack) => {
                assert_eq!(ack.packet_id, id);
                ack
            }
            other => panic!("{other:?}"),
        })
    }

    /// The next message; acknowledged if it is QoS 1.
    pub fn message(&mut self) -> Publish {
        match self.packet() {
            Packet::Publish(publish) => {
                if publish.qos == Qos::AtLeastOnce {
                    let id = publish.packet_id.unwrap();
                    self.send(&Packet::PubAck(Ack::new(
                        id,
                        tributary_shared::mqtt::Reason::SUCCESS,
                    )));
                }
                publish
            }
            other => panic!("{other:?}"),
        }
    }
}
