//! Connections that do nothing: what each costs the broker.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use crate::{Failure, Load, client::Client, process::Usage, round, set};

/// Connections that are being opened at once.
const OPENING: usize = 32;
/// Long, so that no pings disturb the measurement.
const KEEP_ALIVE_S: u16 = 3_600;

pub(crate) async fn measure(load: &Load) -> Result<Value, Failure> {
    let before = load.pid.map(Usage::of).transpose()?;
    let began = Instant::now();
    let mut opening = JoinSet::new();
    let mut clients = Vec::new();
    let mut errors = 0;
    let mut first_error = None;
    for number in 0..load.idle {
        if opening.len() == OPENING {
            take(opening.join_next().await, &mut clients, &mut errors, &mut first_error);
        }
        let load = load.clone();
        opening.spawn(async move {
            let client_id = format!("bench-{}-i{number}", std::process::id());
            Client::connect(&load, client_id, KEEP_ALIVE_S, false).await
        });
    }
    while let Some(joined) = opening.join_next().await {
        take(Some(joined), &mut clients, &mut errors, &mut first_error);
    }
    let seconds = began.elapsed().as_secs_f64();
    sleep(Duration::from_secs(load.hold)).await;
    let after = load.pid.map(Usage::of).transpose()?;
    let open = clients.len();
    let mut line = json!({
        "addr": load.addr.to_string(),
        "version": load.version,
        "idle": open,
        "connects_per_s": (open as f64 / seconds).round(),
        "seconds": round(seconds),
        "errors": errors,
        "first_error": first_error,
    });
    if let (Some(before), Some(after)) = (before, after) {
        let grown = after.rss_kb.saturating_sub(before.rss_kb);
        set(&mut line, "broker_rss_kb", after.rss_kb);
        set(&mut line, "broker_rss_kb_before", before.rss_kb);
        set(&mut line, "bytes_per_connection", grown * 1024 / open.max(1) as u64);
    }
    Ok(line)
}

type Joined = Result<Result<Client, Failure>, tokio::task::JoinError>;

fn take(
    joined: Option<Joined>,
    clients: &mut Vec<Client>,
    errors: &mut usize,
    first_error: &mut Option<String>,
) {
    let error = match joined {
        Some(Ok(Ok(client))) => return clients.push(client),
        Some(Ok(Err(error))) => error.to_string(),
        Some(Err(error)) => error.to_string(),
        None => return,
    };
    *errors += 1;
    first_error.get_or_insert(error);
}
