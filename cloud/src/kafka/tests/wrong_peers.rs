//! What is not Kafka, or not ours, ends its connection and nothing else.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Server, samples::sample};
use crate::kafka::{
    frame::{Decodable, wire::ApiVersionsResponse},
    schema::{API_VERSIONS, METADATA, PRODUCE, TABLE},
};

#[tokio::test]
async fn an_unknown_version_of_api_versions_is_told_which_there_are() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sent = client.send(API_VERSIONS, 99, &[1, 2, 3]).await;
    let (answered, mut body) = client.receive().await.unwrap();
    let answer = ApiVersionsResponse::decode(&mut body, 0).unwrap();
    assert_eq!((answered, answer.error_code), (sent, 35));
    let listed: Vec<_> =
        answer.api_keys.iter().map(|k| (k.api_key, k.min_version, k.max_version)).collect();
    let table: Vec<_> = TABLE.iter().map(|api| (api.key, api.min, api.max)).collect();
    assert_eq!(listed, table);
    // The connection goes on.
    client.send(API_VERSIONS, 3, &sample(API_VERSIONS, 3)).await;
    let (_, answer) = client.receive_as::<ApiVersionsResponse>(3).await;
    assert_eq!(answer.error_code, 0);
}

#[tokio::test]
async fn old_produce_is_listed_but_refused() {
    let server = Server::start().await;
    server.topic("t", 1).await;
    let mut client = server.client().await;
    for (version, length) in [(0, 4 + 3 + 4 + 14), (1, 4 + 3 + 4 + 14 + 4), (2, 4 + 3 + 4 + 22 + 4)]
    {
        client.send(PRODUCE, version, &sample(PRODUCE, version)).await;
        let (_, body) = client.receive().await.unwrap();
        assert_eq!(body.len(), length, "version {version}");
        assert_eq!(body[15..17], [0, 35], "version {version}");
    }
}

async fn is_closed(server: &Server, bytes: &[u8]) {
    let mut client = server.client().await;
    // The head may close before all is written.
    let _ = client.socket.write_all(bytes).await;
    let mut rest = Vec::new();
    let _ = client.socket.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn what_is_not_kafka_is_closed_and_the_others_are_served() {
    let server = Server::start().await;
    let mut good = server.client().await;
    let tls = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01];
    let huge = [0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 9];
    let negative = [0xff, 0xff, 0xff, 0xff, 0, 3, 0, 9];
    let tiny = [0, 0, 0, 4, 0, 3, 0, 9];
    let unknown_key = [0, 0, 0, 10, 0, 71, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    let unknown_version = [0, 0, 0, 10, 0, 3, 0, 99, 0, 0, 0, 1, 0xff, 0xff];
    let lying = [0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff];
    let peers: [&[u8]; 9] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"AMQP\x00\x00\x09\x01",
        &tls,
        &huge,
        &negative,
        &tiny,
        &unknown_key,
        &unknown_version,
        &lying,
    ];
    for peer in peers {
        is_closed(&server, peer).await;
    }
    good.send(METADATA, 1, &sample(METADATA, 1)).await;
    assert!(good.receive().await.is_some());
}
