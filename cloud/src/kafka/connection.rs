//! One client: requests in, answers out in the same order.
//!
//! ```text
//! read loop: frame -> check -> Produce: submitted to the log now | others: as they are --bounded queue-->
//! write loop: Produce: await durable | others: answer now -> socket
//! ```
//! So Produces that follow each other become durable together, while everything else happens one after another, as
//! Kafka does it. A Produce behind an unfinished other request waits for its turn.
//! Change here: order, what is in flight, when a connection ends. Not here: frames (`frame`), answers (`api`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
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

enum Work {
    /// In the log's hands already.
    Produced(produce::Submitted),
    Request(Request),
}

struct InFlight {
    work: Work,
    _bytes: OwnedSemaphorePermit,
}

/// Serves one client until it leaves, misbehaves or the server stops.
pub(super) async fn run(
    client: &Client,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
) -> Result<(), Close> {
    let settings = &client.head.settings;
    let (queue, work) = mpsc::channel(settings.in_flight_requests.max(1));
    // Requests that are in the queue and have not begun.
    let waiting = AtomicUsize::new(0);
    let reader = read_loop(client, from, queue, &waiting);
    let writer = write_loop(client, to, work, &waiting);
    tokio::pin!(writer);
    tokio::select! {
        ended = reader => match ended {
            Err(Close::Stop) => timeout(DRAIN, writer).await.unwrap_or(Ok(())),
            ended => ended,
        },
        ended = &mut writer => ended,
    }
}

async fn read_loop(
    client: &Client,
    mut from: impl AsyncRead + Unpin,
    queue: mpsc::Sender<InFlight>,
    waiting: &AtomicUsize,
) -> Result<(), Close> {
    let settings = &client.head.settings;
    let room =
        settings.in_flight_bytes.clamp(1, Semaphore::MAX_PERMITS >> 1).min(u32::MAX as usize);
    let bytes = Arc::new(Semaphore::new(room));
    let mut buffer = BytesMut::new();
    let mut first = true;
    loop {
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
                Err(_) if queue.capacity() < queue.max_capacity() => continue,
                Err(_) => return Err(Close::Idle(settings.idle_s)),
            },
        };
        let size = frame.len().clamp(1, room) as u32;
        let request = frame::parse(frame)?;
        first = false;
        Numbers::add(&client.head.numbers.requests_total, 1);
        let Ok(permit) = Arc::clone(&bytes).acquire_many_owned(size).await else { return Ok(()) };
        let at_once = request.key == schema::PRODUCE && waiting.load(Ordering::Acquire) == 0;
        let work = if at_once {
            Work::Produced(produce::submit(client, request).await?)
        } else {
            waiting.fetch_add(1, Ordering::AcqRel);
            Work::Request(request)
        };
        if queue.send(InFlight { work, _bytes: permit }).await.is_err() {
            return Ok(());
        }
    }
}

async fn write_loop(
    client: &Client,
    mut to: impl AsyncWrite + Unpin,
    mut work: mpsc::Receiver<InFlight>,
    waiting: &AtomicUsize,
) -> Result<(), Close> {
    let mut out = BytesMut::new();
    loop {
        let next = if let Ok(next) = work.try_recv() {
            next
        } else {
            flush(&mut to, &mut out).await?;
            let Some(next) = work.recv().await else { return Ok(()) };
            next
        };
        let frames = {
            let answer = answer(client, next.work, waiting);
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
    }
}

async fn answer(client: &Client, work: Work, waiting: &AtomicUsize) -> Result<Vec<Bytes>, Close> {
    match work {
        Work::Produced(submitted) => submitted.answer(client).await,
        Work::Request(request) if request.key == schema::PRODUCE => {
            let submitted = produce::submit(client, request).await;
            waiting.fetch_sub(1, Ordering::AcqRel);
            submitted?.answer(client).await
        }
        Work::Request(request) => {
            let frames = api::answer(client, &request).await;
            waiting.fetch_sub(1, Ordering::AcqRel);
            frames
        }
    }
}

async fn flush(to: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> Result<(), Close> {
    if !out.is_empty() {
        to.write_all(out).await?;
        out.clear();
    }
    Ok(())
}
