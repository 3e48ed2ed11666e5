//! Brokers that are not Tributary's cloud, and reset the connection after a refusal.

use super::*;
use crate::link::{Care, Plain};

/// There and back.
const ROUND: Duration = Duration::from_millis(20);

/// Takes every message but this one, which it refuses; and then it closes, so that all answers that are still to be read are
/// lost. Gives what it took.
async fn broker(listener: TcpListener, poison: &'static str, seen: Arc<Mutex<Vec<String>>>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut reader = Reader::server(1 << 20);
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        while matches!(stream.read_buf(&mut input).await, Ok(1..)) {
            sleep(ROUND).await;
            let (mut publishes, mut refused) = (0, false);
            while let Some(packet) = reader.read(&mut input).unwrap() {
                match packet {
                    Packet::Connect(_) => {
                        write(&connack(&Seen::default(), false), Version::V5, &mut output);
                    }
                    Packet::Publish(publish) => {
                        publishes += 1;
                        let text = String::from_utf8_lossy(&publish.payload).into_owned();
                        refused |= text == poison;
                        let reason = if text == poison { Reason(0x87) } else { Reason::SUCCESS };
                        seen.lock().unwrap().extend((!refused).then_some(text));
                        let ack = Ack::new(publish.packet_id.unwrap(), reason);
                        write(&Packet::PubAck(ack), Version::V5, &mut output);
                    }
                    _ => {}
                }
            }
            if !(refused && publishes > 1) && stream.write_all(&output).await.is_err() {
                break;
            }
            output.clear();
            if refused {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_refused_message_is_found_also_where_its_batch_takes_longer_than_an_answer_may() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let broker = tokio::spawn(broker(listener, "55", seen.clone()));
    let settings = Settings { ack_timeout_ms: 300, ..Settings::default() };
    let lane = lane::Settings::default();
    let mut edge = Edge::start_dialling(dir.path(), address, settings, lane, |caller| Plain {
        caller,
        prefix: String::new(),
        care: Care::default(),
    });
    // At one message a round the bad one comes after 1.1 s; 0.3 s and what a slow line takes for the batch are waited.
    edge.publish(0, 60).await;
    let mut progress = edge.opened.store.progress();
    let lane = edge.status.lane("normal");
    let drained = timeout(Duration::from_secs(30), async {
        while lane.batches.get() > 0 {
            progress.changed().await.unwrap();
        }
    });
    assert!(drained.await.is_ok(), "{lane:?}");
    assert_eq!(lane.given_up.get(), 1);
    edge.stop().await;
    broker.abort();
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    seen.dedup();
    let mut good: Vec<_> = numbers(60).into_iter().filter(|text| text != "55").collect();
    good.sort_unstable();
    // A message to the broker says what was given up.
    seen.retain(|text| !text.starts_with('{'));
    assert_eq!(seen, good);
}
