//! A bad link between an edge and its cloud: a TCP proxy that knows where MQTT packets begin and troubles each connection once.
//!
//! Holds: [`Trouble`]: connections cut in every state, acknowledgements lost or late, uploads delivered twice or out of order, a
//! line that lets single bytes through, one that swallows everything without a word. Both ways: uploads and their answers, and
//! commands and theirs. Each kind comes in turn, the order of a turn and after how many packets from a seed.
//! Change here: what a link can do. Not here: who is killed meanwhile, and what must be left of the promises (`mod`).

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::random::Random;

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Closed before CONNECT is passed on.
    BeforeConnect,
    /// CONNECT is passed on, CONNACK is not.
    BeforeConnack,
    /// Half of a PUBLISH is passed on.
    MidPublish,
    /// The receiver has answered, the sender never hears it.
    AckLost,
    /// The cloud gets a PUBLISH twice, the edge one answer.
    Twice,
    /// The cloud gets a PUBLISH before the one that was sent before it.
    Swapped,
    /// Nothing is passed on any more, and nobody is told.
    BlackHole,
    /// A PUBLISH is passed on byte by byte.
    Slow,
    /// Answers are late, and then the sender is cut off.
    Late,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::BeforeConnect,
        Self::BeforeConnack,
        Self::MidPublish,
        Self::AckLost,
        Self::Twice,
        Self::Swapped,
        Self::BlackHole,
        Self::Slow,
        Self::Late,
    ];
}

const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
/// A trouble comes after fewer packets than this.
const AFTER: usize = 12;
/// PUBLISH packets that still pass after one that was doubled, swapped or slow; then the connection is cut.
const MORE: usize = 3;
/// How long a black hole keeps still before it closes.
const SILENCE: Duration = Duration::from_secs(3);
/// Of a slow PUBLISH so many bytes at each end go one by one, the rest in pieces.
const SLOW: usize = 48;
/// How late answers are.
const LATE: Duration = Duration::from_millis(5);
/// Answers that are late before the cut.
const LATE_ANSWERS: usize = 20;

/// The proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Where edges connect.
    pub address: SocketAddr,
    calm: Arc<AtomicBool>,
    met: Arc<Met>,
}

/// Troubles that happened.
#[derive(Debug, Default)]
struct Met {
    counts: Mutex<BTreeMap<Trouble, u64>>,
    changed: Condvar,
}

impl Met {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<Trouble, u64>> {
        self.counts.lock().expect("counts")
    }
}

impl Proxy {
    /// In front of that cloud, with these troubles.
    pub fn start(cloud: SocketAddr, seed: u64, troubles: &'static [Trouble]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (calm, met) = (Arc::new(AtomicBool::new(false)), Arc::<Met>::default());
        let (is_calm, count) = (calm.clone(), met.clone());
        thread::spawn(move || {
            let (mut random, mut turn) = (Random::new(seed), Vec::new());
            for edge in listener.incoming().map_while(Result::ok) {
                if turn.is_empty() {
                    turn = troubles.to_vec();
                }
                let trouble = turn.swap_remove(random.below(turn.len()));
                let trouble = (!is_calm.load(Ordering::Relaxed)).then_some(trouble);
                let line = Line {
                    trouble,
                    after: random.below(AFTER),
                    met: count.clone(),
                    ..Line::default()
                };
                thread::spawn(move || serve(&edge, cloud, Arc::new(line)));
            }
        });
        Self { address, calm, met }
    }

    /// Connections from now on are left alone, or not. Those there are meet their trouble.
    pub fn calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::Relaxed);
    }

    /// How many troubles there were.
    pub fn total(&self) -> u64 {
        self.met.counts().values().sum()
    }

    /// Waits for so many troubles in all.
    pub fn wait(&self, total: u64, patience: Duration) -> bool {
        let few = |counts: &mut BTreeMap<Trouble, u64>| counts.values().sum::<u64>() < total;
        let wait = self.met.changed.wait_timeout_while(self.met.counts(), patience, few);
        !wait.expect("counts").1.timed_out()
    }

    /// Troubles that happened, by name.
    pub fn met(&self) -> BTreeMap<String, u64> {
        let counts = self.met.counts();
        counts.iter().map(|(trouble, count)| (format!("{trouble:?}"), *count)).collect()
    }
}

/// One connection.
#[derive(Debug, Default)]
struct Line {
    trouble: Option<Trouble>,
    /// So many packets pass before it.
    after: usize,
    met: Arc<Met>,
    /// Swallows everything.
    dead: AtomicBool,
    /// Packet ids that the cloud got twice: one of its answers is for nobody.
    twice: Mutex<Vec<[u8; 2]>>,
}

impl Line {
    fn is(&self, trouble: Trouble) -> bool {
        self.trouble == Some(trouble)
    }

    /// Its trouble has come.
    fn meet(&self) {
        if let Some(trouble) = self.trouble {
            *self.met.counts().entry(trouble).or_default() += 1;
            self.met.changed.notify_all();
        }
    }
}

/// Why a direction ended: as intended, or because one side has gone.
type Passed = io::Result<()>;

/// Serves one connection to its end.
fn serve(edge: &TcpStream, cloud: SocketAddr, line: Arc<Line>) {
    let close = |streams: [&TcpStream; 2]| {
        streams.map(|stream| stream.shutdown(Shutdown::Both)).into_iter().for_each(drop);
    };
    if line.is(Trouble::BeforeConnect) {
        line.meet();
        return close([edge, edge]);
    }
    let Ok(cloud) = TcpStream::connect(cloud) else { return close([edge, edge]) };
    let both =
        [edge, &cloud].map(|stream| stream.set_nodelay(true).and_then(|()| stream.try_clone()));
    let [Ok(edge_too), Ok(cloud_too)] = both else { return close([edge, &cloud]) };
    let line_too = line.clone();
    let up = thread::spawn(move || {
        let _ = pass(&edge_too, &cloud_too, &line_too, true);
        close([&edge_too, &cloud_too]);
    });
    let _ = pass(&cloud, edge, &line, false);
    close([edge, &cloud]);
    let _ = up.join();
}

/// Passes packets on in one direction. Returns when the connection is to be closed.
fn pass(mut from: &TcpStream, mut to: &TcpStream, line: &Line, up: bool) -> Passed {
    let (mut published, mut answered) = (0, 0);
    let (mut held, mut left): (Option<Vec<u8>>, _) = (None, None);
    loop {
        let packet = read_packet(&mut from)?;
        if line.dead.load(Ordering::Relaxed) {
            continue;
        }
        match kind(&packet) {
            CONNACK if line.is(Trouble::BeforeConnack) => {
                line.meet();
                return Ok(());
            }
            PUBLISH => {
                published += 1;
                left = match left {
                    Some(0) => return Ok(()),
                    Some(left) => Some(left - 1),
                    None => None,
                };
                let now = published > line.after && left.is_none();
                match line.trouble.filter(|_| now) {
                    Some(Trouble::MidPublish) => {
                        to.write_all(packet.get(..packet.len() / 2).unwrap_or_default())?;
                        line.meet();
                        return Ok(());
                    }
                    Some(Trouble::BlackHole) => return swallow(from, line),
                    Some(Trouble::Slow) => {
                        slowly(&mut to, &packet)?;
                        line.meet();
                        left = Some(MORE);
                        continue;
                    }
                    Some(Trouble::Twice) if up => {
                        line.twice.lock().expect("ids").extend(packet_id(&packet));
                        to.write_all(&packet)?;
                        line.meet();
                        left = Some(MORE);
                    }
                    Some(Trouble::Swapped) if up => {
                        let Some(first) = held.take() else {
                            held = Some(packet);
                            continue;
                        };
                        to.write_all(&packet)?;
                        to.write_all(&first)?;
                        line.meet();
                        left = Some(MORE);
                        continue;
                    }
                    _ => {}
                }
            }
            PUBACK => {
                answered += 1;
                let mut second = line.twice.lock().expect("ids");
                let id = packet.get(2..4);
                if let Some(at) = second.iter().position(|known| Some(&known[..]) == id) {
                    second.remove(at);
                    continue;
                }
                drop(second);
                let cut = line.is(Trouble::AckLost) && answered > line.after
                    || line.is(Trouble::Late) && answered > line.after + LATE_ANSWERS;
                if cut {
                    line.meet();
                    return Ok(());
                }
                if line.is(Trouble::Late) {
                    thread::sleep(LATE);
                }
            }
            _ => {}
        }
        to.write_all(&packet)?;
    }
}

/// Takes everything and passes nothing on, until the sender gives up or has waited long.
fn swallow(mut from: &TcpStream, line: &Line) -> Passed {
    line.dead.store(true, Ordering::Relaxed);
    line.meet();
    from.set_read_timeout(Some(SILENCE))?;
    while from.read(&mut [0; 4096])? > 0 {}
    Ok(())
}

fn slowly(to: &mut impl Write, packet: &[u8]) -> Passed {
    let ends = |at: usize| at < SLOW || at + SLOW >= packet.len();
    let mut at = 0;
    while let Some(rest) = packet.get(at..).filter(|rest| !rest.is_empty()) {
        let piece = if ends(at) { 1 } else { rest.len().min(1024) - SLOW.min(rest.len() / 2) };
        let piece = piece.clamp(1, rest.len());
        to.write_all(&rest[..piece])?;
        thread::sleep(Duration::from_micros(100));
        at += piece;
    }
    Ok(())
}

fn kind(packet: &[u8]) -> u8 {
    packet.first().map_or(0, |first| first >> 4)
}

/// Of a PUBLISH at QoS 1: behind its topic.
fn packet_id(packet: &[u8]) -> Option<[u8; 2]> {
    let header = 1 + packet.iter().skip(1).position(|byte| byte & 0x80 == 0)? + 1;
    let topic = packet.get(header..header + 2)?;
    let at = header + 2 + usize::from(u16::from_be_bytes([topic[0], topic[1]]));
    packet.get(at..at + 2)?.try_into().ok()
}

/// One whole packet with its fixed header.
fn read_packet(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut packet = vec![0];
    from.read_exact(&mut packet)?;
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        packet.extend(byte);
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 || shift > 21 {
            break;
        }
    }
    let header = packet.len();
    packet.resize(header + length, 0);
    from.read_exact(&mut packet[header..])?;
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_told_apart_and_have_their_ids() {
        let publish = [0x32, 7, 0, 1, b't', 0x12, 0x34, 0, b'x'];
        let long = [&[0x32, 0x84, 0x01, 0, 1, b't', 0, 9][..], &[0; 127][..]].concat();
        let bytes = [&publish[..], &[0x40, 2, 0x12, 0x34], &long].concat();
        let mut from = &bytes[..];
        let packets = [(); 3].map(|()| read_packet(&mut from).expect("a packet"));
        assert_eq!(packets.each_ref().map(|packet| kind(packet)), [PUBLISH, PUBACK, PUBLISH]);
        assert_eq!(packet_id(&packets[0]), Some([0x12, 0x34]));
        assert_eq!(packet_id(&packets[2]), Some([0, 9]));
        assert!(from.is_empty());
    }

    #[test]
    fn what_passes_slowly_passes_whole() {
        for length in [0, 1, 2, 47, 95, 96, 97, 98, 1500, 5000] {
            let packet: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let mut passed = Vec::new();
            slowly(&mut passed, &packet).expect("passed");
            assert_eq!(passed, packet);
        }
    }
}
