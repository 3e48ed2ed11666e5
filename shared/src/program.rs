//! What every program does around its work: run it until a signal, end with one sentence.
//!
//! Change here: signals, the last word. Not here: arguments and settings (each `main`), the parts (each `app`).

use std::{convert::Infallible, error::Error, io, process::ExitCode, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// For threads that still block when everything has ended: they have nothing left to promise.
const LAST: Duration = Duration::from_millis(200);

/// Runs `work` on all cores until it ends; it is to end soon when its token is cancelled, which SIGTERM and SIGINT do.
pub fn serve<W>(work: impl FnOnce(CancellationToken) -> W) -> Result<(), Box<dyn Error>>
where
    W: Future<Output = Result<(), Box<dyn Error>>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = stop_on_signals(stop.clone())?;
        tokio::select! {
            outcome = work(stop) => outcome,
            never = signals => match never {},
        }
    });
    runtime.shutdown_timeout(LAST);
    outcome
}

fn stop_on_signals(stop: CancellationToken) -> io::Result<impl Future<Output = Infallible>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping");
        stop.cancel();
        std::future::pending().await
    })
}

/// Does something at each SIGHUP.
pub fn at_hangup(mut act: impl FnMut()) -> io::Result<impl Future<Output = Infallible>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            act();
        }
        std::future::pending().await
    })
}

/// Says in one sentence why it ended, if it did not end well.
#[expect(clippy::print_stderr, reason = "the last word of a program")]
pub fn end(
    program: &str,
    outcome: Result<(), Box<dyn Error>>,
    code: impl FnOnce(&(dyn Error + 'static)) -> ExitCode,
) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error}");
            code(&*error)
        }
    }
}
