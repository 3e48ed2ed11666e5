//! A publisher that sends at fixed times, on threads of its own: the runtime's timers are too coarse.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::BytesMut;
use tributary_shared::mqtt::Version;

use crate::{
    Failure, Run,
    client::{Client, Template},
    frames,
    histogram::Histogram,
    publisher::acknowledged,
};

/// The last moment before a send is spent awake: a sleeping thread wakes up late by this much.
const AWAKE_NS: u64 = 80_000;

/// Free packet ids, and when each was scheduled.
struct Window {
    free: Mutex<Vec<u16>>,
    freed: Condvar,
    scheduled_ns: Vec<AtomicU64>,
}

pub(crate) fn publish(run: &Arc<Run>, number: usize) -> Result<Histogram, Failure> {
    let runtime = tokio::runtime::Handle::current();
    let client_id = format!("bench-{}-p{number}", run.name);
    let client = runtime.block_on(Client::connect(&run.load, client_id, 0, false))?;
    let version = client.version;
    let stream = client.stream.into_std()?;
    stream.set_nonblocking(false)?;
    let ids = run.load.window;
    let window = Window {
        free: Mutex::new((1..=ids).rev().collect()),
        freed: Condvar::new(),
        scheduled_ns: (0..=ids).map(|_| AtomicU64::new(0)).collect(),
    };
    let answers = stream.try_clone()?;
    thread::scope(|scope| {
        let reading = scope.spawn(|| read(run, &window, answers, version));
        let sent = send(run, &window, stream, number);
        let acks = reading.join().map_err(|_| "reading thread died")?;
        sent?;
        acks
    })
}

fn send(run: &Run, window: &Window, mut stream: TcpStream, number: usize) -> Result<(), Failure> {
    let template = Template::new(run, number);
    let publishers = run.load.publishers as f64;
    let interval_ns = 1e9 * publishers / run.load.rate;
    let first_ns = run.now_ns() as f64 + interval_ns * (1.0 + number as f64 / publishers);
    let mut out = BytesMut::new();
    for index in 0..run.load.messages {
        let due = (first_ns + interval_ns * index as f64) as u64;
        wait_until(run, due);
        let packet_id = if run.load.qos == 0 { 0 } else { window.take(due) };
        template.put(packet_id, due, &mut out);
        run.sent.fetch_add(1, Ordering::Relaxed);
        stream.write_all(&out)?;
        out.clear();
    }
    if run.load.qos == 0 {
        stream.write_all(&[0xE0, 0])?;
    }
    Ok(())
}

fn wait_until(run: &Run, due_ns: u64) {
    let left = due_ns.saturating_sub(run.now_ns());
    if left > AWAKE_NS {
        thread::sleep(Duration::from_nanos(left - AWAKE_NS));
    }
    while run.now_ns() < due_ns {
        std::hint::spin_loop();
    }
}

impl Window {
    fn take(&self, due_ns: u64) -> u16 {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(packet_id) = free.pop() {
                if let Some(place) = self.scheduled_ns.get(usize::from(packet_id)) {
                    place.store(due_ns, Ordering::Relaxed);
                }
                return packet_id;
            }
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give_back(&self, packet_id: u16) -> u64 {
        let place = self.scheduled_ns.get(usize::from(packet_id));
        let scheduled = place.map_or(0, |place| place.load(Ordering::Relaxed));
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(packet_id);
        self.freed.notify_one();
        scheduled
    }
}

/// Reads until every message is acknowledged (QoS 0: until the broker closes).
fn read(
    run: &Run,
    window: &Window,
    mut stream: TcpStream,
    version: Version,
) -> Result<Histogram, Failure> {
    let mut acks = Histogram::default();
    let mut buffer = BytesMut::new();
    let mut out = BytesMut::new();
    let mut chunk = [0; 4096];
    let mut waiting = run.load.messages;
    while waiting > 0 {
        let read = stream.read(&mut chunk)?;
        if read == 0 && run.load.qos == 0 {
            return Ok(acks);
        }
        if read == 0 {
            return Err("publisher was closed by the broker".into());
        }
        buffer.extend_from_slice(chunk.get(..read).unwrap_or_default());
        while let Some(frame) = frames::next(&mut buffer, version)? {
            let Some(packet_id) = acknowledged(frame, &mut out)? else { continue };
            let now = run.now_ns();
            acks.record(now.saturating_sub(window.give_back(packet_id)));
            waiting -= 1;
            run.acked.fetch_add(1, Ordering::Relaxed);
            run.last_ns.fetch_max(now, Ordering::Relaxed);
        }
        if !out.is_empty() {
            stream.write_all(&out)?;
            out.clear();
        }
    }
    stream.write_all(&[0xE0, 0])?;
    Ok(acks)
}
