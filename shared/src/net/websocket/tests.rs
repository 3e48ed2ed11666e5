//! Against a well-known client library, and against peers that read and write in odd pieces.

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::{
    client_async,
    tungstenite::{
        Message,
        client::IntoClientRequest,
        handshake::client::Response,
        http::HeaderValue,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::*;

type Client = tokio_tungstenite::WebSocketStream<DuplexStream>;

/// Both ends, over a pipe that holds so many bytes.
async fn pair(pipe: usize) -> (Client, WebSocket<DuplexStream>, Response) {
    let (theirs, ours) = duplex(pipe);
    let mut request = "ws://gw/mqtt".into_client_request().unwrap();
    let protocol = HeaderValue::from_static("mqtt");
    request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
    let (client, server) = tokio::join!(client_async(request, theirs), accept(ours, &[]));
    let (client, response) = client.unwrap();
    (client, server.unwrap(), response)
}

// [MQTT-6.0.0-2]
// [MQTT311-6.0.0-2] [MQTT311-6.0.0-4]
#[tokio::test]
async fn bytes_arrive_as_sent_in_both_directions_however_messages_are_cut() {
    for pipe in [200, 777, 100_000] {
        let (mut client, mut server, response) = pair(pipe).await;
        assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
        let sent: Vec<u8> = (0..80_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let client_side = async {
            let mut got = Vec::new();
            for (at, part) in sent.chunks(30_011).enumerate() {
                client.send(Message::binary(part.to_vec())).await.unwrap();
                if at == 1 {
                    client.send(Message::Ping("?".into())).await.unwrap();
                }
            }
            let mut pong = false;
            while got.len() < sent.len() {
                match client.next().await.unwrap().unwrap() {
                    Message::Binary(part) => got.extend_from_slice(&part),
                    Message::Pong(payload) => pong = &*payload == b"?",
                    other => panic!("{other:?}"),
                }
            }
            assert!(pong, "before the echo, in order");
            got
        };
        let server_side = async {
            let mut echo = vec![0; sent.len()];
            server.read_exact(&mut echo).await.unwrap();
            let (one, other) = echo.split_at(7_777);
            let mut pieces = bytes::Buf::chain(one, other);
            while bytes::Buf::has_remaining(&pieces) {
                server.write_buf(&mut pieces).await.unwrap();
            }
            server.flush().await.unwrap();
        };
        let (got, ()) = tokio::join!(client_side, server_side);
        assert!(got == expected, "pipe of {pipe}");
        // Idle again: nothing is held.
        assert_eq!(server.control.capacity(), 0);
    }
}

// [MQTT-6.0.0-1]
// [MQTT311-6.0.0-1]
#[tokio::test]
async fn a_text_frame_ends_the_connection_and_the_client_is_told() {
    let (mut client, mut server, _) = pair(1_000).await;
    client.send(Message::text("CONNECT")).await.unwrap();
    let error = server.read(&mut [0; 100]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(server.read(&mut [0; 100]).await.unwrap(), 0, "and stays ended");
    let close = client.next().await.unwrap().unwrap();
    let Message::Close(Some(CloseFrame { code, .. })) = close else { panic!("{close:?}") };
    assert_eq!(code, CloseCode::Unsupported);
}

#[tokio::test]
async fn both_sides_can_close() {
    let (mut client, mut server, _) = pair(1_000).await;
    client.send(Message::binary(&b"bye"[..])).await.unwrap();
    client.close(None).await.unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"bye");
    assert!(matches!(client.next().await, Some(Ok(Message::Close(_)))));
    assert!(server.write_all(b"late").await.is_err());

    let (mut client, mut server, _) = pair(1_000).await;
    server.write_all(b"bye").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(client.next().await.unwrap().unwrap().into_data(), &b"bye"[..]);
    let close = client.next().await.unwrap().unwrap();
    assert!(matches!(close, Message::Close(Some(CloseFrame { code: CloseCode::Normal, .. }))));
}

#[tokio::test]
async fn a_peer_that_pings_and_never_reads_costs_no_more_than_a_little() {
    let (mut client, mut server, _) = pair(200).await;
    for n in 0..1_000_u32 {
        let ping = Message::Ping(vec![0; 100].into());
        client.feed(ping).await.unwrap();
        let flush = client.flush();
        let mut nothing = [0; 10];
        let drain = server.read(&mut nothing);
        // Nothing but pings: the read never ends, the flush does while something is drained.
        tokio::select! { biased; _ = drain => panic!("data"), flushed = flush => flushed.unwrap() }
        assert!(server.control.len() <= WAITING + 130, "after {n}");
    }
}

#[tokio::test]
async fn what_is_no_websocket_request_gets_an_http_answer() {
    let (mut theirs, ours) = duplex(10_000);
    theirs.write_all(b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n").await.unwrap();
    let error = accept(ours, &[]).await.unwrap_err();
    assert!(matches!(error, UpgradeError::Refused { status: 426, .. }), "{error}");
    let mut answer = String::new();
    theirs.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nthis is an MQTT port for WebSocket clients\n"), "{answer}");

    let (mut theirs, ours) = duplex(100_000);
    theirs.write_all(&vec![b'A'; 20_000]).await.unwrap();
    assert!(matches!(accept(ours, &[]).await, Err(UpgradeError::Refused { status: 431, .. })));
}
