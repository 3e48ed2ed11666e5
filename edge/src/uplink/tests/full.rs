//! A disk that is full: what the cloud confirms makes room, so sending never waits for room.

use super::*;

/// A reading asks the store to merge, a refused message to give it up, a connection to begin an epoch: all while a group
/// of messages waits for room.
#[tokio::test]
async fn a_backlog_that_fills_the_disk_drains_and_what_waits_for_room_follows() {
    for fresh_first in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let lane = lane::Settings { fresh_first, ..lane::Settings::default() };
        let store =
            store::Settings { ballast_bytes: 0, max_bytes: 1 << 20, ..store::Settings::default() };
        let open = |cloud| {
            let settings = Settings { window_batches: 4, ..Settings::default() };
            Edge::start_on(dir.path(), cloud, (settings, lane.clone()), store.clone(), Batches)
        };
        let mut edge = open("127.0.0.1:1".parse().unwrap());
        for i in 0..400 {
            edge.publish_long(i, 1, 1000).await;
        }
        edge.stop().await;
        let cloud = Cloud::start(true, |_, publish| {
            let batch = Batch::parse(publish.payload.clone()).unwrap();
            let records = batch.records(1 << 20).unwrap();
            let is_poison = |value: &Bytes| value.starts_with(b"77 ");
            let poison = records.iter().filter_map(|record| record.value.as_ref()).any(is_poison);
            if poison { Act::Say(0x99) } else { Act::Follow }
        })
        .await;
        let mut edge = open(cloud.address);
        let more = (400..403).map(|i| Edge::change(i, 200_000)).collect();
        // Before the uplink has had its first turn.
        let ticket = edge.opened.journal.apply(more).await.unwrap();
        let mut progress = edge.opened.store.progress();
        let committed = progress.wait_for(|progress| progress.committed >= ticket);
        timeout(Duration::from_secs(30), committed).await.expect("room").unwrap();
        edge.drained().await;
        assert_eq!(edge.status.disk_full_total.get(), 1);
        edge.stop().await;
        let seen = cloud.seen.lock().unwrap();
        let mut records: Vec<usize> =
            seen.records.iter().map(|text| text.parse().unwrap()).collect();
        records.sort_unstable();
        assert_eq!(records, (0..403).filter(|i| *i != 77).collect::<Vec<_>>());
        assert_eq!(seen.gaps.len(), 1, "{:?}", seen.gaps);
    }
}
