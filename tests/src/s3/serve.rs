//! The store over HTTP, and the port at which its faults are switched.
//!
//! Holds: one task a connection; a request meets its [`Fate`] on the way in or out. Not here: objects (`super`), dice (`faults`).

use std::{io, net::SocketAddr};

use hyper::{Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use s3s::{
    Body, HttpError,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{
    ACCESS_KEY, Faults, MemoryS3, SECRET_KEY,
    faults::{Fate, Present},
};

/// What S3 answers when it has too much to do.
const SLOW_DOWN: &str = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

impl MemoryS3 {
    /// Serves on a free loopback port until the runtime ends.
    pub async fn serve(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let mut builder = S3ServiceBuilder::new(self.clone());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let (service, store) = (builder.build(), self.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (service, store) = (service.clone(), store.clone());
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let answer =
                        service_fn(move |request| answer(service.clone(), store.clone(), request));
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        Ok(local)
    }

    /// Takes orders ([`Faults`], a line of JSON each) on a port of its own.
    pub async fn serve_control(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let store = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let store = store.clone();
                tokio::spawn(async move { store.take_orders(stream).await });
            }
        });
        Ok(local)
    }

    async fn take_orders(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 0 {
            let said = match serde_json::from_str::<Faults>(&line) {
                Ok(faults) => serde_json::to_string(&self.faults(|present| present.set(faults)))?,
                Err(error) => format!("no faults: {error}"),
            };
            stream.write_all(format!("{said}\n").as_bytes()).await?;
            line.clear();
        }
        Ok(())
    }
}

async fn answer(
    service: S3Service,
    store: MemoryS3,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, HttpError> {
    match store.faults(Present::fate) {
        Fate::Answered(late) => {
            tokio::time::sleep(late).await;
            service.call(request.map(Body::from)).await
        }
        Fate::Unavailable(late) => {
            tokio::time::sleep(late).await;
            let mut answer = Response::new(Body::from(SLOW_DOWN.to_owned()));
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            Ok(answer)
        }
        Fate::Lost(late) => {
            tokio::time::sleep(late).await;
            service.call(request.map(Body::from)).await?;
            // The connection ends with it.
            Err(HttpError::new(Box::new(io::Error::other("nobody is to hear of it"))))
        }
    }
}
