//! One client: requests in, answers out in the same order.
//!
//! ```text
//! read loop: frame -> check --bounded queue-->
//! begin loop: Produce: submitted to the log | others: once all before them are answered, answered --bounded queue-->
//! write loop: Produce: await durable -> socket
//! ```
//! So Produces that follow each other become durable together, also behind another request, while everything else happens
//! one after another, as Kafka does it.
//! Change here: order, what is in flight, when a connection ends. Not here: frames (`frame`), answers (`api`).

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};

use super::{
    Client, DRAIN, Numbers,
    api::{self, produce},
    frame::{self, Close, Request},
    schema,
};

/// Limit for requests until the first was valid.
const FIRST_MAX: usize = 1024 * 1024;

/// A client that says nothing valid for so long is none.
const FIRST_WITHIN: Duration = Duration::from_secs(30);

/// Small answers are joined up to this size before they are sent.
const JOIN_UP_TO: usize = 64 * 1024;

/// Read, and not begun.
struct Read {
    request: Request,
    bytes: OwnedSemaphorePermit,
}

/// Begun, in the order in which it was read.
struct Begun {
    work: Work,
    _bytes: OwnedSemaphorePermit,
}

enum Work {
    /// In the log's hands.
    Produced(produce::Submitted),
    Answered(Vec<Bytes>),
}

/// Serves one client until it leaves, misbehaves or the server stops.
pub(super) async fn run(
    client: &Client,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
) -> Result<(), Close> {
    let in_flight = client.head.settings.in_flight_requests.max(1);
    let (queue, read) = mpsc::channel(in_flight.div_ceil(2));
    let (ready, begun) = mpsc::channel(in_flight.div_ceil(2));
    // How many requests have been answered.
    let (answered, seen) = watch::channel(0);
    let reader = read_loop(client, from, queue, seen.clone());
    let working = async {
        let (begin, write) =
            (begin_loop(client, read, ready, seen), write_loop(client, to, begun, &answered));
        tokio::pin!(begin, write);
        tokio::select! {
            ended = &mut begin => {
                ended?;
                write.await
            }
            ended = &mut write => ended,
        }
    };
    tokio::pin!(working);
    tokio::select! {
        ended = reader => match ended {
            Err(Close::Stop) => timeout(DRAIN, working).await.unwrap_or(Ok(())),
            ended => ended,
        },
        ended = &mut working => ended,
    }
}

async fn read_loop(
    client: &Client,
    mut from: impl AsyncRead + Unpin,
    queue: mpsc::Sender<Read>,
    answered: watch::Receiver<u64>,
) -> Result<(), Close> {
    let settings = &client.head.settings;
    let room =
        settings.in_flight_bytes.clamp(1, Semaphore::MAX_PERMITS >> 1).min(u32::MAX as usize);
    let bytes = Arc::new(Semaphore::new(room));
    let mut buffer = BytesMut::new();
    let mut count = 0;
    loop {
        let first = count == 0;
        let limit = if first { FIRST_MAX } else { settings.max_request_bytes };
        let limit = limit.min(settings.max_request_bytes);
        let patience = if first { FIRST_WITHIN } else { Duration::from_secs(settings.idle_s) };
        let read = timeout(patience, frame::read_frame(&mut from, &mut buffer, limit));
        let frame = tokio::select! {
            biased;
            () = client.head.stop.cancelled() => return Err(Close::Stop),
            read = read => match read {
                Ok(frame) => frame?,
                Err(_) if first => return Err(Close::NoRequest(FIRST_WITHIN.as_secs())),
                // Who waits for an answer is not idle.
                Err(_) if *answered.borrow() < count => continue,
                Err(_) => return Err(Close::Idle(settings.idle_s)),
            },
        };
        let size = frame.len().clamp(1, room) as u32;
        let request = frame::parse(frame)?;
        count += 1;
        Numbers::add(&client.head.numbers.requests_total, 1);
        let Ok(bytes) = Arc::clone(&bytes).acquire_many_owned(size).await else { return Ok(()) };
        if queue.send(Read { request, bytes }).await.is_err() {
            return Ok(());
        }
    }
}

async fn begin_loop(
    client: &Client,
    mut read: mpsc::Receiver<Read>,
    ready: mpsc::Sender<Begun>,
    mut answered: watch::Receiver<u64>,
) -> Result<(), Close> {
    let mut begun = 0;
    while let Some(Read { request, bytes }) = read.recv().await {
        let work = if request.key == schema::PRODUCE {
            Work::Produced(produce::submit(client, request).await?)
        } else {
            // Whoever asks what has come of it sees it.
            if answered.wait_for(|answered| *answered == begun).await.is_err() {
                return Ok(());
            }
            Work::Answered(api::answer(client, &request).await?)
        };
        begun += 1;
        if ready.send(Begun { work, _bytes: bytes }).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

async fn write_loop(
    client: &Client,
    mut to: impl AsyncWrite + Unpin,
    mut begun: mpsc::Receiver<Begun>,
    answered: &watch::Sender<u64>,
) -> Result<(), Close> {
    let mut out = BytesMut::new();
    loop {
        let next = if let Ok(next) = begun.try_recv() {
            next
        } else {
            flush(&mut to, &mut out).await?;
            let Some(next) = begun.recv().await else { return Ok(()) };
            next
        };
        let frames = {
            let answer = answer(client, next.work);
            tokio::pin!(answer);
            // What is ready goes out before we wait for what is not.
            if let Some(ready) = answer.as_mut().now_or_never() {
                ready?
            } else {
                flush(&mut to, &mut out).await?;
                answer.await?
            }
        };
        for frame in frames {
            if out.len() + frame.len() <= JOIN_UP_TO {
                out.extend_from_slice(&frame);
            } else {
                flush(&mut to, &mut out).await?;
                to.write_all(&frame).await?;
            }
        }
        answered.send_modify(|answered| *answered += 1);
    }
}

async fn answer(client: &Client, work: Work) -> Result<Vec<Bytes>, Close> {
    match work {
        Work::Produced(submitted) => submitted.answer(client).await,
        Work::Answered(frames) => Ok(frames),
    }
}

async fn flush(to: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> Result<(), Close> {
    if !out.is_empty() {
        to.write_all(out).await?;
        out.clear();
    }
    Ok(())
}
