//! The line of a simulated gateway: what `link::Batches` does with rumqttc, over a simulated socket.
//!
//! Holds: CONNECT, PUBLISH, PINGREQ out; CONNACK, PUBACK, DISCONNECT in. Each upload and each answer is told to the [`World`].
//! Change here: what goes over the line. Not here: what is sent when (the real `uplink`).

use std::{collections::BTreeMap, num::NonZeroU16, path::Path, time::Duration};

use bytes::BytesMut;
use rusqlite::{Connection, OpenFlags};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tributary_edge::link::{Answer, Dial, Link, Pipe, Report, Upload, Welcome};
use tributary_shared::{
    mqtt::{
        Packet, Qos, Reader, Reason, Version,
        packet::{Ack, ConnAck, Connect, Disconnect, Publish, PublishProperties},
        write::write,
    },
    tasks,
};
use turmoil::net::{
    TcpStream,
    tcp::{OwnedReadHalf, OwnedWriteHalf},
};

use super::{cloud, world::World};

/// Uploads and answers that wait, more than any window.
const LIMIT: usize = 1024;

/// Seconds between pings; an unanswered one ends the connection.
const KEEP_ALIVE_S: u16 = 2;

/// Bytes of the longest packet from the cloud.
const INCOMING_BYTES: usize = 64 * 1024;

/// One lane's way to the cloud.
pub(super) struct SimulatedDial {
    pub(super) world: World,
    pub(super) host: usize,
    pub(super) life: usize,
    pub(super) edge_id: String,
    pub(super) lane: String,
    pub(super) connect_timeout: Duration,
}

enum Out {
    Upload(Upload),
    Goodbye,
}

impl Dial for SimulatedDial {
    async fn dial(&self) -> Result<(Link, Welcome), String> {
        // What another connection is promised while CONNACK travels is not in it.
        let promised = self.world.lock().promised.clone();
        let (mut line, connack) = timeout(self.connect_timeout, self.connect())
            .await
            .map_err(|_| "no CONNACK in time".to_owned())??;
        let welcome = welcome(&connack);
        {
            let mut world = self.world.lock();
            for (epoch, next) in &welcome.expect.iter().collect::<BTreeMap<_, _>>() {
                world.event(&format!("{} {} expects {epoch}:{next}", self.edge_id, self.lane));
                world.mark_seen(&promised, &self.edge_id, **epoch, **next);
            }
        }
        let (outgoing, queue) = mpsc::channel(LIMIT);
        let (news, reports) = mpsc::channel(LIMIT);
        line.topic = format!("tributary/{}/up/{}", self.edge_id, self.lane);
        let task = tasks::spawn("simulated pipe", async move { line.run(queue, news).await });
        let pipe = SimulatedPipe { outgoing, world: self.world.clone(), host: self.host };
        Ok((Link::new(Box::new(pipe), reports, task), welcome))
    }
}

impl SimulatedDial {
    async fn connect(&self) -> Result<(Line, ConnAck), String> {
        let failed = |error: std::io::Error| error.to_string();
        let stream = TcpStream::connect((cloud::NAME, cloud::PORT)).await.map_err(failed)?;
        let (input, output) = stream.into_split();
        let mut line = Line {
            world: self.world.clone(),
            edge_id: self.edge_id.clone(),
            input,
            output,
            topic: String::new(),
            reader: Reader::client(Version::V5, INCOMING_BYTES),
            buffer: BytesMut::new(),
            sent: BTreeMap::new(),
            next_id: 1,
            next_token: 0,
            taken: false,
        };
        line.write(&self.hello()).await.map_err(failed)?;
        match line.read().await? {
            Packet::ConnAck(connack) if connack.reason == Reason::SUCCESS => Ok((line, *connack)),
            other => Err(format!("instead of CONNACK: {other:?}")),
        }
    }

    fn hello(&self) -> Packet {
        Packet::Connect(Box::new(Connect {
            version: Version::V5,
            client_id: format!("{}.up.{}", self.edge_id, self.lane).into(),
            clean_start: true,
            keep_alive: KEEP_ALIVE_S,
            will: None,
            user_name: None,
            password: None,
            session_expiry: None,
            receive_maximum: None,
            maximum_packet_size: Some(INCOMING_BYTES as u32),
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            user_properties: vec![
                ("tributary-edge".into(), self.edge_id.as_str().into()),
                ("tributary-lane".into(), self.lane.as_str().into()),
                ("tributary-instance".into(), format!("{:016x}", self.life).into()),
            ],
            authentication_method: None,
            authentication_data: None,
        }))
    }
}

fn welcome(connack: &ConnAck) -> Welcome {
    let properties = &connack.properties;
    let expect = properties.user_properties.iter().filter_map(|(name, value)| {
        let (epoch, next) = value.split_once(':').filter(|_| name == "expect")?;
        Some((epoch.parse().ok()?, next.parse().ok()?))
    });
    Welcome {
        expect: expect.collect(),
        receive_maximum: properties.receive_maximum.map_or(usize::from(u16::MAX), usize::from),
        packet_bytes: properties.maximum_packet_size.map_or(usize::MAX, |bytes| bytes as usize),
    }
}

struct SimulatedPipe {
    outgoing: mpsc::Sender<Out>,
    world: World,
    host: usize,
}

impl Pipe for SimulatedPipe {
    fn send(&self, upload: Upload) -> Result<(), String> {
        let Upload { epoch, s, n, .. } = upload;
        if let Some(reason) = &upload.gap {
            let line = format!("declares {epoch}:{s}+{n} given up: {reason}");
            self.world.event(&line);
            let folder = self.world.lock().hosts[self.host].folder.clone();
            let given_up = given_up(&folder.join("edge.db"), epoch, s, n);
            if given_up != Ok(n) {
                self.world.fault(format!("{line}, but the store says {given_up:?}"));
            }
        }
        self.outgoing.try_send(Out::Upload(upload)).map_err(|error| error.to_string())
    }

    fn goodbye(&self) -> bool {
        self.outgoing.try_send(Out::Goodbye).is_ok()
    }
}

/// How many of these sequences the file says were given up, whole rows or parts of them.
fn given_up(file: &Path, epoch: i64, s: u64, n: u64) -> rusqlite::Result<u64> {
    let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut found = db.prepare(
        "SELECT s, s + n FROM batch WHERE epoch = ?1 AND reason IS NOT NULL
         UNION ALL
         SELECT part.s, part.s + part.n FROM part JOIN batch ON part.batch = batch.id
         WHERE batch.epoch = ?1 AND part.reason IS NOT NULL",
    )?;
    let ranges =
        found.query_map([epoch], |row| Ok(row.get::<_, i64>(0)?..row.get::<_, i64>(1)?))?;
    let ranges = ranges.collect::<rusqlite::Result<Vec<_>>>()?;
    let is_given_up = |seq: &u64| ranges.iter().any(|range| range.contains(&(*seq as i64)));
    Ok((s..s + n).filter(is_given_up).count() as u64)
}

/// An open connection.
struct Line {
    world: World,
    edge_id: String,
    input: OwnedReadHalf,
    output: OwnedWriteHalf,
    topic: String,
    reader: Reader,
    buffer: BytesMut,
    /// Packet id -> token, epoch, end.
    sent: BTreeMap<u16, (u64, i64, u64)>,
    next_id: u16,
    next_token: u64,
    taken: bool,
}

impl Line {
    async fn run(mut self, mut outgoing: mpsc::Receiver<Out>, news: mpsc::Sender<Report>) {
        let Err(why) = self.pump(&mut outgoing, &news).await else { return };
        let _gone = news.send(Report::Closed { why, refused: None }).await;
    }

    /// `Ok`: nobody listens any more.
    async fn pump(
        &mut self,
        outgoing: &mut mpsc::Receiver<Out>,
        news: &mpsc::Sender<Report>,
    ) -> Result<(), String> {
        let mut ping = interval(Duration::from_secs(u64::from(KEEP_ALIVE_S)));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pinged = false;
        loop {
            while let Some(packet) =
                self.reader.read(&mut self.buffer).map_err(|error| error.to_string())?
            {
                match packet {
                    Packet::PubAck(ack) => {
                        if let Some(report) = self.answered(&ack)
                            && news.send(report).await.is_err()
                        {
                            return Ok(());
                        }
                    }
                    Packet::PingResp => pinged = false,
                    Packet::Disconnect(said) => return Err(format!("told {:?}", said.reason)),
                    other => return Err(format!("unexpected {other:?}")),
                }
            }
            let failed = |error: std::io::Error| error.to_string();
            tokio::select! {
                out = outgoing.recv() => match out {
                    None => return Ok(()),
                    Some(Out::Upload(upload)) => {
                        let packet = self.publish(upload);
                        self.write(&packet).await.map_err(failed)?;
                    }
                    Some(Out::Goodbye) => {
                        let bye = Packet::Disconnect(Disconnect::new(Reason::SUCCESS));
                        self.write(&bye).await.map_err(failed)?;
                    }
                },
                read = self.input.read_buf(&mut self.buffer) => if read.map_err(failed)? == 0 {
                    return Err("closed by the cloud".to_owned());
                },
                _ = ping.tick() => {
                    if pinged {
                        return Err("no answer to a ping".to_owned());
                    }
                    pinged = true;
                    self.write(&Packet::PingReq).await.map_err(failed)?;
                }
            }
        }
    }

    fn publish(&mut self, upload: Upload) -> Packet {
        let Upload { epoch, s, n, .. } = upload;
        while self.sent.contains_key(&self.next_id) || self.next_id == 0 {
            self.next_id = self.next_id.wrapping_add(1);
        }
        self.sent.insert(self.next_id, (self.next_token, epoch, s + n));
        self.next_token += 1;
        self.world.event(format!("{} sends {epoch}:{s}+{n}", self.topic));
        let mut user_properties = vec![
            ("ep".into(), epoch.to_string().into()),
            ("s".into(), s.to_string().into()),
            ("n".into(), n.to_string().into()),
        ];
        user_properties.extend(upload.gap.map(|reason| ("gap".into(), reason.into())));
        Packet::Publish(Publish {
            qos: Qos::AtLeastOnce,
            topic: self.topic.as_str().into(),
            packet_id: NonZeroU16::new(self.next_id),
            payload: upload.payload,
            properties: PublishProperties {
                content_type: Some("application/vnd.kafka.recordbatch.v2".into()),
                user_properties,
                ..PublishProperties::default()
            },
            ..Publish::default()
        })
    }

    fn answered(&mut self, ack: &Ack) -> Option<Report> {
        let (token, epoch, end) = self.sent.remove(&ack.packet_id.get())?;
        let answer = answer(ack, self.taken);
        self.taken |= answer == Answer::Done;
        let mut world = self.world.lock();
        world.event(&format!("{} {epoch}:..{end}: {answer:?}", self.topic));
        if answer == Answer::Done {
            world.promise(&self.edge_id, epoch, end);
        }
        Some(Report::Answered(token, answer))
    }

    async fn write(&mut self, packet: &Packet) -> std::io::Result<()> {
        let mut bytes = BytesMut::new();
        write(packet, Version::V5, &mut bytes);
        self.output.write_all(&bytes).await
    }

    async fn read(&mut self) -> Result<Packet, String> {
        loop {
            if let Some(packet) =
                self.reader.read(&mut self.buffer).map_err(|error| error.to_string())?
            {
                return Ok(packet);
            }
            match self.input.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                Ok(0) => return Err("closed before CONNACK".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// As `link::batches` reads it. `taken`: something was taken on this connection before, and with it the lane's topic.
fn answer(ack: &Ack, taken: bool) -> Answer {
    let mut expected = ack.user_properties.iter().filter(|(name, _)| name == "expected");
    let expected = expected.find_map(|(_, next)| next.parse().ok());
    match (ack.reason.0, expected) {
        (0x00 | 0x10, _) => Answer::Done,
        (0x83, Some(next)) => Answer::Expected(next),
        (0x90, _) if taken => Answer::Never(0x90),
        (code @ (0x95 | 0x99 | 0x9B), _) => Answer::Never(code),
        (code, _) => Answer::NotNow(code),
    }
}
