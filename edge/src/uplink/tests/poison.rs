//! What the cloud refuses for good, and what it refuses for now.

use super::*;

/// Refuses every batch that holds one of these payloads.
fn refuse(code: u8, poison: &'static [&'static str]) -> impl FnMut(usize, &Publish) -> Act {
    move |_, publish| {
        let user = &publish.properties.user_properties;
        let batch = Batch::parse(publish.payload.clone()).unwrap();
        let holds = |r: &tributary_shared::record::Record| {
            poison.iter().any(|p| r.value.as_deref() == Some(p.as_bytes()))
        };
        let bad = !user.iter().any(|(k, _)| k == "gap")
            && batch.records(1 << 20).unwrap().iter().any(holds);
        if bad { Act::Say(code) } else { Act::Follow }
    }
}

#[tokio::test]
async fn a_message_refused_for_good_is_given_up_alone_and_all_others_arrive_once_and_in_order() {
    // rumqttc cannot read 0x95, 0x9B and 0xF7 in a PUBACK: the connection breaks, and still it is understood.
    for code in [0x99, 0x95, 0x9B, 0xF7] {
        let dir = tempfile::tempdir().unwrap();
        let cloud = Cloud::start(true, refuse(code, &["40", "41", "99", "302"])).await;
        // However slow the machine is, no connection is given up for that.
        let settings = Settings { window_batches: 4, ..Settings::default() };
        let lane = lane::Settings::default();
        let mut edge = Edge::start_dialling(dir.path(), cloud.address, settings, lane, Batches);
        edge.publish(0, 2).await;
        edge.publish(2, 300).await;
        edge.publish(302, 1).await;
        edge.publish(303, 50).await;
        edge.drained().await;
        edge.publish(353, 1).await;
        edge.drained().await;
        let given_up = edge.status.lane("normal").given_up.get();
        edge.stop().await;
        let seen = cloud.seen.lock().unwrap();
        let mut good = numbers(354);
        good.retain(|text| !["40", "41", "99", "302"].contains(&&**text));
        assert_eq!(seen.records, good, "{code:#x}");
        let reason = format!("refused by the cloud: {code:#04x}");
        let gaps = [40, 41, 99, 302].map(|s| (s, 1, reason.clone()));
        assert_eq!((&seen.gaps[..], given_up), (&gaps[..], 4), "{code:#x}");
        let db = rusqlite::Connection::open(dir.path().join("edge.db")).unwrap();
        let kept: i64 =
            db.query_row("SELECT count(*) FROM quarantine", [], |row| row.get(0)).unwrap();
        assert_eq!(kept, 4);
        assert_eq!(seen.connects.len() == 1, code == 0x99, "{code:#x}");
    }
}

#[tokio::test]
async fn an_edge_that_is_refused_whole_gives_nothing_up() {
    // 0x90: our own topic, the same for every batch.
    for code in [0x80, 0x83, 0x87, 0x97, 0x90] {
        let allowed = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (asked, mut ask) = tokio::sync::mpsc::channel(1000);
        let open = allowed.clone();
        let (_dir, cloud, mut edge) = setup(move |_, _| {
            asked.try_send(()).unwrap();
            if open.load(Relaxed) { Act::Follow } else { Act::Say(code) }
        })
        .await;
        edge.publish(0, 20).await;
        for _ in 0..6 {
            ask.recv().await.unwrap();
        }
        let lane = edge.status.lane("normal");
        assert_eq!((lane.messages.get(), lane.given_up.get()), (20, 0), "{code:#x}");
        allowed.store(true, Relaxed);
        edge.drained().await;
        edge.stop().await;
        let seen = cloud.seen.lock().unwrap();
        assert_eq!((seen.records.clone(), seen.gaps.len()), (numbers(20), 0), "{code:#x}");
    }
}

#[tokio::test]
async fn a_topic_refused_after_the_lane_was_taken_is_about_the_batch() {
    let (_dir, cloud, mut edge) = setup(refuse(0x90, &["5"])).await;
    edge.publish(0, 3).await;
    edge.drained().await;
    edge.publish(3, 7).await;
    edge.drained().await;
    edge.stop().await;
    let seen = cloud.seen.lock().unwrap();
    assert_eq!(seen.records.len(), 9);
    assert_eq!(seen.gaps, [(5, 1, "refused by the cloud: 0x90".to_owned())]);
}

#[tokio::test]
async fn a_cloud_that_refuses_everything_does_not_empty_an_edge() {
    let dir = tempfile::tempdir().unwrap();
    let (asked, mut ask) = tokio::sync::mpsc::channel(1000);
    let cloud = Cloud::start(true, move |_, publish| {
        asked.try_send(()).unwrap();
        let gap = publish.properties.user_properties.iter().any(|(k, _)| k == "gap");
        if gap { Act::Follow } else { Act::Say(0x99) }
    })
    .await;
    let settings = Settings { give_ups_per_hour: 5, ..Settings::default() };
    let lane = lane::Settings::default();
    let mut edge = Edge::start_with(dir.path(), cloud.address, settings, lane);
    edge.publish(0, 64).await;
    // Searching: 5 gaps, and the sixth single message that is refused is the last thing that is sent.
    while cloud.seen.lock().unwrap().gaps.len() < 5 {
        ask.recv().await.unwrap();
    }
    ask.recv().await.unwrap();
    let lane = edge.status.lane("normal");
    assert_eq!((lane.given_up.get(), lane.messages.get()), (5, 59));
    edge.stop().await;
}
