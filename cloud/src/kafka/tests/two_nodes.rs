//! Two nodes of a cluster over one store, as clients meet them while shards move.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{net::TcpListener, sync::watch, time::timeout};

use super::{Server, Wire, groups::at_once, samples::batch};
use crate::{
    cluster::{Addresses, Cluster, Leader, Node, NodeId, View},
    engine::{ShardId, memory::MemoryEngine},
    kafka::{
        frame::{Encodable, text, wire::*},
        schema::*,
    },
    log::{
        Lease, Log, LogError, Offset, Settings,
        remote::{Far, Heard, Remote, StreamChange},
    },
};

/// Soon enough for a test, and far less than the long polls in it.
const SOON: Duration = Duration::from_secs(20);

/// The other node, asked directly.
#[derive(Default)]
struct Direct(OnceLock<[Log; 2]>);

#[async_trait]
impl Remote for Direct {
    async fn read(&self, _: &Far, _: Offset, _: usize) -> Result<Heard, LogError> {
        Err(LogError::NotOwner)
    }

    async fn change(&self, change: StreamChange) -> Result<(), LogError> {
        for log in self.0.get().into_iter().flatten() {
            if log.is_here(ShardId(0)) {
                return log.change_here(change).await;
            }
        }
        Err(LogError::NotOwner)
    }
}

struct Nodes {
    servers: [Server; 2],
    views: [watch::Sender<Arc<View>>; 2],
    copies: Vec<tokio::task::AbortHandle>,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        self.copies.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

impl Nodes {
    /// Shard 0 is the first's, shard 1 the second's.
    async fn start() -> Self {
        let engine = Arc::new(MemoryEngine::new(2));
        let remote = Arc::new(Direct::default());
        let log =
            || Log::join(engine.clone(), Settings::default(), remote.clone(), Lease::forever());
        let logs = [log(), log()];
        assert!(remote.0.set(logs.clone()).is_ok());
        let mut nodes = BTreeMap::new();
        let mut listeners = Vec::new();
        for id in [NodeId(1), NodeId(2)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let kafka = listener.local_addr().unwrap().to_string();
            let addresses = Addresses { kafka, ..Addresses::default() };
            let name = format!("n{}", id.0);
            nodes.insert(id, Arc::new(Node { id, name, addresses }));
            listeners.push(listener);
        }
        let views = [1, 2].map(|me| {
            let shards = [1, 2].map(|owner| Leader { owner: Some(NodeId(owner)), epoch: 1 });
            let (nodes, shards) = (nodes.clone(), shards.to_vec());
            let cluster = "one".to_owned();
            watch::Sender::new(Arc::new(View {
                version: 1,
                cluster,
                me: NodeId(me),
                nodes,
                shards,
            }))
        });
        logs[0].take(ShardId(0)).await.unwrap();
        logs[1].take(ShardId(1)).await.unwrap();
        let mut listeners = listeners.into_iter();
        let servers = [0, 1].map(|node| {
            let cluster = Cluster::new(views[node].subscribe());
            Server::of(logs[node].clone(), at_once(), cluster, listeners.next().unwrap())
        });
        let [one, two] = logs;
        let copies = vec![copy(one.clone(), two.clone()), copy(two, one)];
        Self { servers, views, copies }
    }

    fn tell(&self, shard: u16, owner: Option<i32>) {
        for view in &self.views {
            view.send_modify(|view| {
                let view = Arc::make_mut(view);
                view.version += 1;
                let place = &mut view.shards[usize::from(shard)];
                *place = Leader { owner: owner.map(NodeId), epoch: place.epoch + 1 };
            });
        }
    }

    fn log(&self, node: usize) -> &Log {
        &self.servers[node].log
    }

    /// A planned move, as a drain makes it.
    async fn hand_over(&self, shard: u16, from: usize, to: usize) {
        self.log(from).release(ShardId(shard)).await.unwrap();
        self.tell(shard, Some(to as i32 + 1));
        self.log(to).take(ShardId(shard)).await.unwrap();
    }

    async fn clients(&self) -> [Wire; 2] {
        [self.servers[0].client().await, self.servers[1].client().await]
    }

    /// Makes topic `t` with two partitions at the node that does not have shard 0; returns when both know of it. Says whose
    /// partition 0 is (0 or 1).
    async fn topic(&self, clients: &mut [Wire; 2]) -> usize {
        use create_topics_request::*;
        let topic = CreatableTopic::default()
            .with_name(TopicName(text("t")))
            .with_num_partitions(2)
            .with_replication_factor(-1);
        let request = CreateTopicsRequest::default().with_topics(vec![topic]);
        let made: CreateTopicsResponse = clients[1].ask(CREATE_TOPICS, 5, &request).await;
        assert_eq!(made.topics[0].error_code, 0, "{:?}", made.topics[0].error_message);
        let leaders = [metadata(&mut clients[0]).await, metadata(&mut clients[1]).await];
        assert_eq!(leaders[0], leaders[1]);
        assert_ne!(leaders[0][0], leaders[0][1], "a shard each");
        leaders[0][0].0 as usize - 1
    }
}

fn copy(from: Log, to: Log) -> tokio::task::AbortHandle {
    let copying = async move {
        let mut known = None;
        while let Ok(list) = from.catalog_changed(known).await {
            known = Some(list.version);
            to.learn(list).await;
        }
    };
    tributary_shared::tasks::spawn("copy of the streams", copying).abort_handle()
}

/// (leader, epoch) of the partitions of `t`.
async fn metadata(client: &mut Wire) -> Vec<(i32, i32)> {
    let topic =
        metadata_request::MetadataRequestTopic::default().with_name(Some(TopicName(text("t"))));
    let request = MetadataRequest::default().with_topics(Some(vec![topic]));
    let told: MetadataResponse = client.ask(METADATA, 8, &request).await;
    let ids: Vec<i32> = told.brokers.iter().map(|broker| broker.node_id.0).collect();
    assert_eq!((ids, told.cluster_id.as_deref()), (vec![1, 2], Some("one")));
    assert!(told.brokers.iter().all(|broker| &*broker.host == "127.0.0.1" && broker.port != 0));
    let partitions = &told.topics[0].partitions;
    partitions.iter().map(|found| (found.leader_id.0, found.leader_epoch)).collect()
}

fn produce() -> ProduceRequest {
    use produce_request::*;
    let data = PartitionProduceData::default().with_records(Some(batch(&["a"])));
    let topic =
        TopicProduceData::default().with_name(TopicName(text("t"))).with_partition_data(vec![data]);
    ProduceRequest::default().with_acks(-1).with_topic_data(vec![topic])
}

/// (error code, base offset) of a Produce to partition 0.
async fn produced(client: &mut Wire) -> (i16, i64) {
    let answer: ProduceResponse = client.ask(PRODUCE, 9, &produce()).await;
    let partition = &answer.responses[0].partition_responses[0];
    (partition.error_code, partition.base_offset)
}

fn fetch(from: i64, epoch: i32, wait_ms: i32) -> FetchRequest {
    use fetch_request::*;
    let partition = FetchPartition::default()
        .with_fetch_offset(from)
        .with_current_leader_epoch(epoch)
        .with_partition_max_bytes(1_000);
    let topic =
        FetchTopic::default().with_topic(TopicName(text("t"))).with_partitions(vec![partition]);
    FetchRequest::default()
        .with_max_wait_ms(wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(1_000)
        .with_topics(vec![topic])
}

fn fetched(answer: &FetchResponse) -> (i16, i64) {
    let partition = &answer.responses[0].partitions[0];
    (partition.error_code, partition.high_watermark)
}

/// (error code, offset) of the latest record.
async fn latest(client: &mut Wire) -> (i16, i64) {
    use list_offsets_request::*;
    let partition =
        ListOffsetsPartition::default().with_current_leader_epoch(-1).with_timestamp(-1);
    let topic = ListOffsetsTopic::default()
        .with_name(TopicName(text("t")))
        .with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_topics(vec![topic]);
    let answer: ListOffsetsResponse = client.ask(LIST_OFFSETS, 5, &request).await;
    let partition = &answer.topics[0].partitions[0];
    (partition.error_code, partition.offset)
}

async fn send(client: &mut Wire, key: i16, version: i16, request: &impl Encodable) {
    let mut body = Vec::new();
    request.encode(&mut body, version).unwrap();
    client.send(key, version, &body).await;
}

#[tokio::test]
async fn clients_are_told_who_leads_and_sent_on_from_everybody_else() {
    use offset_for_leader_epoch_request::*;

    let nodes = Nodes::start().await;
    let mut clients = nodes.clients().await;
    let leader = nodes.topic(&mut clients).await;
    let other = 1 - leader;
    assert_eq!(produced(&mut clients[other]).await, (6, -1));
    assert_eq!(produced(&mut clients[leader]).await, (0, 0));
    assert_eq!(latest(&mut clients[other]).await, (6, -1));
    assert_eq!(latest(&mut clients[leader]).await, (0, 1));
    let answer: FetchResponse = clients[other].ask(FETCH, 9, &fetch(0, -1, 60_000)).await;
    assert_eq!(fetched(&answer), (6, -1));
    for (epoch, told) in [(-1, (0, 1)), (1, (0, 1)), (0, (74, -1)), (2, (75, -1))] {
        let answer: FetchResponse = clients[leader].ask(FETCH, 9, &fetch(0, epoch, 0)).await;
        assert_eq!(fetched(&answer), told, "epoch {epoch}");
    }

    let shard = leader as u16;
    nodes.hand_over(shard, leader, other).await;
    assert_eq!(metadata(&mut clients[leader]).await[0], (other as i32 + 1, 2));
    assert_eq!(produced(&mut clients[leader]).await, (6, -1));
    assert_eq!(produced(&mut clients[other]).await, (0, 1));
    // What was read in the first epoch is as true in the second.
    let asked =
        OffsetForLeaderPartition::default().with_current_leader_epoch(2).with_leader_epoch(1);
    let topic = OffsetForLeaderTopic::default()
        .with_topic(TopicName(text("t")))
        .with_partitions(vec![asked]);
    let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
    let answer: OffsetForLeaderEpochResponse =
        clients[other].ask(OFFSET_FOR_LEADER_EPOCH, 3, &request).await;
    let end = &answer.topics[0].partitions[0];
    assert_eq!((end.error_code, end.leader_epoch, end.end_offset), (0, 1, 2));

    // Nobody's: clients ask again.
    nodes.log(other).release(ShardId(shard)).await.unwrap();
    nodes.tell(shard, None);
    assert_eq!(metadata(&mut clients[leader]).await[0], (-1, 3));
    assert_eq!(produced(&mut clients[other]).await, (6, -1));
}

#[tokio::test]
async fn who_is_refused_is_told_who_leads_and_where() {
    let nodes = Nodes::start().await;
    let mut clients = nodes.clients().await;
    let leader = nodes.topic(&mut clients).await;
    let (other, id) = (1 - leader, leader as i32 + 1);
    let named = metadata_request::MetadataRequestTopic::default();
    let named = named.with_name(Some(TopicName(text("t"))));
    let request = MetadataRequest::default().with_topics(Some(vec![named]));
    let told: MetadataResponse = clients[other].ask(METADATA, 12, &request).await;
    let topic_id = told.topics[0].topic_id;
    let place = told.brokers.iter().find(|broker| broker.node_id.0 == id).unwrap();

    let answer: ProduceResponse = clients[other].ask(PRODUCE, 10, &produce()).await;
    let part = &answer.responses[0].partition_responses[0];
    let said = (part.error_code, part.current_leader.leader_id.0, part.current_leader.leader_epoch);
    assert_eq!(said, (6, id, 1));
    let [node] = answer.node_endpoints.as_slice() else { panic!("{answer:?}") };
    assert_eq!((node.node_id.0, &node.host, node.port), (id, &place.host, place.port));

    let mut request = fetch(0, -1, 0);
    let answer: FetchResponse = clients[other].ask(FETCH, 12, &request).await;
    let part = &answer.responses[0].partitions[0];
    let said = (part.error_code, part.current_leader.leader_id.0, part.current_leader.leader_epoch);
    assert_eq!(said, (6, id, 1));
    request.topics[0].topic = TopicName::default();
    request.topics[0].topic_id = topic_id;
    let answer: FetchResponse = clients[other].ask(FETCH, 16, &request).await;
    assert_eq!(answer.responses[0].partitions[0].current_leader.leader_id.0, id);
    let [node] = answer.node_endpoints.as_slice() else { panic!("{answer:?}") };
    assert_eq!((node.node_id.0, &node.host, node.port), (id, &place.host, place.port));

    // Who is served hears nothing of it.
    let answer: ProduceResponse = clients[leader].ask(PRODUCE, 10, &produce()).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
    assert!(answer.node_endpoints.is_empty());

    // A batch that the shard's going takes with it: the answer waits for where it went.
    nodes.log(leader).release(ShardId(leader as u16)).await.unwrap();
    send(&mut clients[leader], PRODUCE, 10, &produce()).await;
    nodes.tell(leader as u16, Some(other as i32 + 1));
    let answer = clients[leader].receive_as::<ProduceResponse>(10).await.1;
    let part = &answer.responses[0].partition_responses[0];
    let said = (part.error_code, part.current_leader.leader_id.0, part.current_leader.leader_epoch);
    assert_eq!(said, (6, other as i32 + 1, 2));
}

#[tokio::test]
async fn a_long_poll_ends_when_the_partition_leaves() {
    let nodes = Nodes::start().await;
    let mut clients = nodes.clients().await;
    let leader = nodes.topic(&mut clients).await;
    send(&mut clients[leader], FETCH, 9, &fetch(0, -1, 280_000)).await;
    nodes.hand_over(leader as u16, leader, 1 - leader).await;
    let answer = timeout(SOON, clients[leader].receive_as::<FetchResponse>(9)).await.unwrap().1;
    assert_eq!(fetched(&answer).0, 6);
}

#[tokio::test]
async fn a_request_waits_while_its_shard_is_opened() {
    let nodes = Nodes::start().await;
    let mut clients = nodes.clients().await;
    let old = nodes.topic(&mut clients).await;
    let new = 1 - old;
    nodes.log(old).release(ShardId(old as u16)).await.unwrap();
    // At the old owner a request waits for the map, at the new one for the shard.
    send(&mut clients[old], PRODUCE, 9, &produce()).await;
    nodes.tell(old as u16, Some(new as i32 + 1));
    send(&mut clients[new], PRODUCE, 9, &produce()).await;
    nodes.log(new).take(ShardId(old as u16)).await.unwrap();
    let told = async |client: &mut Wire| {
        let answer = client.receive_as::<ProduceResponse>(9).await.1;
        answer.responses[0].partition_responses[0].error_code
    };
    assert_eq!(told(&mut clients[old]).await, 6);
    assert_eq!(told(&mut clients[new]).await, 0);
}

async fn coordinator(client: &mut Wire) -> i32 {
    let request = FindCoordinatorRequest::default().with_key(text("g"));
    let found: FindCoordinatorResponse = client.ask(FIND_COORDINATOR, 3, &request).await;
    assert_eq!(found.error_code, 0);
    found.node_id.0
}

#[tokio::test]
async fn a_group_moves_with_its_shard_and_keeps_members_and_offsets() {
    use super::groups::{commit, committed, enter, heartbeat, join, sync};
    let nodes = Nodes::start().await;
    let mut clients = nodes.clients().await;
    nodes.topic(&mut clients).await;
    let shard = nodes.log(0).home_shard("g").0;
    let (home, away) = (usize::from(shard), 1 - usize::from(shard));
    assert_eq!(coordinator(&mut clients[0]).await, i32::from(shard) + 1);
    assert_eq!(coordinator(&mut clients[1]).await, i32::from(shard) + 1);

    let joined = enter(&mut clients[home]).await;
    let shares = [(joined.member_id.as_str(), &b"all"[..])];
    let synced: SyncGroupResponse = clients[home].ask(SYNC_GROUP, 3, &sync(&joined, &shares)).await;
    assert_eq!(synced.error_code, 0);
    assert_eq!(heartbeat(&mut clients[away], &joined).await, 16);
    for (node, code) in [(away, 16), (home, 0)] {
        let request = commit(joined.generation_id, &joined.member_id, 42);
        let answer: OffsetCommitResponse = clients[node].ask(OFFSET_COMMIT, 7, &request).await;
        assert_eq!(answer.topics[0].partitions[0].error_code, code);
    }
    // Another waits to be let in.
    let mut second = nodes.servers[home].client().await;
    let told: JoinGroupResponse = second.ask(JOIN_GROUP, 5, &join("")).await;
    send(&mut second, JOIN_GROUP, 5, &join(&told.member_id)).await;
    while heartbeat(&mut clients[home], &joined).await != 27 {}

    nodes.hand_over(shard, home, away).await;
    let refused = timeout(SOON, second.receive_as::<JoinGroupResponse>(5)).await.unwrap().1;
    assert!([14, 16].contains(&refused.error_code), "{}", refused.error_code);
    assert_eq!(heartbeat(&mut clients[home], &joined).await, 16);
    assert_eq!(coordinator(&mut clients[home]).await, away as i32 + 1);
    assert_eq!(heartbeat(&mut clients[away], &joined).await, 0);
    assert_eq!(committed(&mut clients[away]).await, 42);
    let request = commit(joined.generation_id, &joined.member_id, 43);
    let answer: OffsetCommitResponse = clients[away].ask(OFFSET_COMMIT, 7, &request).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
    // Back again: what the first owner still had in memory is not believed.
    nodes.hand_over(shard, away, home).await;
    assert_eq!(heartbeat(&mut clients[home], &joined).await, 0);
    assert_eq!(committed(&mut clients[home]).await, 43);
    let listed: ListGroupsResponse =
        clients[away].ask(LIST_GROUPS, 4, &ListGroupsRequest::default()).await;
    assert_eq!((listed.error_code, listed.groups.len()), (0, 0));
}

/// (error code, id)
async fn producer_id(client: &mut Wire) -> (i16, i64) {
    let request = InitProducerIdRequest::default().with_transactional_id(None);
    let given: InitProducerIdResponse = client.ask(INIT_PRODUCER_ID, 2, &request).await;
    (given.error_code, given.producer_id.0)
}

#[tokio::test]
async fn no_two_nodes_ever_give_the_same_producer_id() {
    let nodes = Nodes::start().await;
    let mut clients = nodes.clients().await;
    let mut given = Vec::new();
    for _ in 0..1_001 {
        given.push(producer_id(&mut clients[0]).await);
        given.push(producer_id(&mut clients[1]).await);
    }
    nodes.hand_over(1, 1, 0).await;
    nodes.hand_over(0, 0, 1).await;
    for _ in 0..1_001 {
        given.push(producer_id(&mut clients[0]).await);
        given.push(producer_id(&mut clients[1]).await);
    }
    assert!(given.iter().all(|(code, _)| *code == 0));
    let different: std::collections::BTreeSet<_> = given.iter().collect();
    assert_eq!(different.len(), given.len());

    // The first gives up what it has left of its block, and has nothing to count in.
    nodes.hand_over(1, 0, 1).await;
    let mut left = 0;
    while producer_id(&mut clients[0]).await.0 == 0 {
        left += 1;
    }
    assert!(left < 1_000);
    assert_eq!(producer_id(&mut clients[0]).await.0, 14);
}

#[tokio::test]
async fn a_stream_that_another_listener_accepted_is_served_like_a_socket() {
    let log = crate::log::testing::test_log(1).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let groups = crate::group::Groups::open(log.clone(), at_once(), stop.clone());
    let addresses = Addresses { kafka: "[::1]:9092".into(), ..Addresses::default() };
    let cluster = Cluster::alone(addresses, 1);
    let (settings, status) = (crate::kafka::Settings::default(), crate::status::Status::default());
    let head = crate::kafka::Head::open(settings, log, groups, cluster, &status, stop.clone());
    let head = head.await.unwrap();
    let (mut near, far) = tokio::io::duplex(4_096);
    let serving = head.serve_stream(far, "n2".into());
    let asking = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        // Metadata, version 0, of everything.
        near.write_all(&[0, 0, 0, 14, 0, 3, 0, 0, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 0, 0])
            .await
            .unwrap();
        let size = near.read_u32().await.unwrap();
        let mut answer = vec![0; size as usize];
        near.read_exact(&mut answer).await.unwrap();
        stop.cancel();
        Bytes::from(answer)
    };
    let (answer, ()) = tokio::join!(asking, serving);
    assert_eq!(&answer[..12], [0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!(&answer[12..21], [0, 3, b':', b':', b'1', 0, 0, 0x23, 0x84]);
}
