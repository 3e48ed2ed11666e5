//! Groups over the wire: ids, rebalances, offsets that survive.

use bytes::Bytes;

use super::{Server, Wire};
use crate::{
    group,
    kafka::{
        frame::{text, wire::*},
        schema::{
            DELETE_GROUPS, DESCRIBE_GROUPS, HEARTBEAT, JOIN_GROUP, LEAVE_GROUP, LIST_GROUPS,
            OFFSET_COMMIT, OFFSET_FETCH, SYNC_GROUP,
        },
    },
    log::testing::test_log,
};

pub(super) fn at_once() -> group::Settings {
    group::Settings { initial_rebalance_delay_ms: 0, ..group::Settings::default() }
}

pub(super) fn join(member_id: &str) -> JoinGroupRequest {
    use join_group_request::*;
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(Bytes::from_static(b"topics"));
    JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_session_timeout_ms(30_000)
        .with_rebalance_timeout_ms(30_000)
        .with_member_id(text(member_id))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

/// Joins as KIP-394 wants it.
pub(super) async fn enter(client: &mut Wire) -> JoinGroupResponse {
    let told: JoinGroupResponse = client.ask(JOIN_GROUP, 5, &join("")).await;
    assert_eq!(told.error_code, 79);
    client.ask(JOIN_GROUP, 5, &join(&told.member_id)).await
}

pub(super) fn sync(
    joined: &JoinGroupResponse,
    shares: &[(&str, &'static [u8])],
) -> SyncGroupRequest {
    use sync_group_request::*;
    let assignments = shares.iter().map(|(member, share)| {
        SyncGroupRequestAssignment::default()
            .with_member_id(text(*member))
            .with_assignment(Bytes::from_static(share))
    });
    SyncGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
        .with_assignments(assignments.collect())
}

pub(super) async fn heartbeat(client: &mut Wire, joined: &JoinGroupResponse) -> i16 {
    let request = HeartbeatRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone());
    let answer: HeartbeatResponse = client.ask(HEARTBEAT, 3, &request).await;
    answer.error_code
}

pub(super) fn commit(generation: i32, member: &str, offset: i64) -> OffsetCommitRequest {
    use offset_commit_request::*;
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let topic = OffsetCommitRequestTopic::default()
        .with_name(TopicName(text("t")))
        .with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_generation_id_or_member_epoch(generation)
        .with_member_id(text(member))
        .with_topics(vec![topic])
}

pub(super) async fn committed(client: &mut Wire) -> i64 {
    let request = OffsetFetchRequest::default().with_group_id(GroupId(text("g"))).with_topics(None);
    let answer: OffsetFetchResponse = client.ask(OFFSET_FETCH, 7, &request).await;
    answer.topics.first().map_or(-1, |topic| topic.partitions[0].committed_offset)
}

#[tokio::test]
async fn two_members_share_a_group_through_a_rebalance() {
    let server = Server::over(test_log(2).await.unwrap(), at_once()).await;
    let (mut one, mut two) = (server.client().await, server.client().await);
    let first = enter(&mut one).await;
    assert_eq!((first.error_code, &first.leader), (0, &first.member_id));
    let shares = [(first.member_id.as_str(), &b"all"[..])];
    let synced: SyncGroupResponse = one.ask(SYNC_GROUP, 3, &sync(&first, &shares)).await;
    assert_eq!(synced.assignment, "all");
    assert_eq!(heartbeat(&mut one, &first).await, 0);

    // The second is told its id; its real join waits for the first to come again.
    let told: JoinGroupResponse = two.ask(JOIN_GROUP, 5, &join("")).await;
    let mut body = Vec::new();
    crate::kafka::frame::Encodable::encode(&join(&told.member_id), &mut body, 5).unwrap();
    two.send(JOIN_GROUP, 5, &body).await;
    while heartbeat(&mut one, &first).await != 27 {}
    let again: JoinGroupResponse = one.ask(JOIN_GROUP, 5, &join(&first.member_id)).await;
    let (_, second) = two.receive_as::<JoinGroupResponse>(5).await;
    assert_eq!(again.generation_id, second.generation_id);
    assert_eq!((again.members.len(), second.members.len()), (2, 0));

    let shares =
        [(again.member_id.as_str(), &b"left"[..]), (second.member_id.as_str(), &b"right"[..])];
    let left: SyncGroupResponse = one.ask(SYNC_GROUP, 3, &sync(&again, &shares)).await;
    let right: SyncGroupResponse = two.ask(SYNC_GROUP, 3, &sync(&second, &[])).await;
    assert_eq!((&left.assignment[..], &right.assignment[..]), (&b"left"[..], &b"right"[..]));
    // What was true before the rebalance is refused.
    assert_eq!(heartbeat(&mut one, &first).await, 22);
}

#[tokio::test]
async fn committed_offsets_survive_a_restart_of_the_groups() {
    let server = Server::over(test_log(2).await.unwrap(), at_once()).await;
    server.topic("t", 1).await;
    let mut client = server.client().await;
    let joined = enter(&mut client).await;
    let shares = [(joined.member_id.as_str(), &b"all"[..])];
    let _: SyncGroupResponse = client.ask(SYNC_GROUP, 3, &sync(&joined, &shares)).await;
    for (generation, member, code) in [
        (joined.generation_id, joined.member_id.as_str(), 0),
        (joined.generation_id + 1, joined.member_id.as_str(), 22),
        (joined.generation_id, "nobody", 25),
        (-1, "", 25),
    ] {
        let answer: OffsetCommitResponse =
            client.ask(OFFSET_COMMIT, 7, &commit(generation, member, 42)).await;
        assert_eq!(answer.topics[0].partitions[0].error_code, code);
    }
    let again = server.restarted().await;
    let mut client = again.client().await;
    assert_eq!(committed(&mut client).await, 42);
}

#[tokio::test]
async fn members_do_not_notice_a_restart_of_the_groups() {
    let server = Server::over(test_log(2).await.unwrap(), at_once()).await;
    server.topic("t", 1).await;
    let mut client = server.client().await;
    let joined = enter(&mut client).await;
    let shares = [(joined.member_id.as_str(), &b"all"[..])];
    let _: SyncGroupResponse = client.ask(SYNC_GROUP, 3, &sync(&joined, &shares)).await;

    let server = server.restarted().await;
    let mut client = server.client().await;
    // Operators see it before its members have said anything.
    let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(text("g"))]);
    let seen: DescribeGroupsResponse = client.ask(DESCRIBE_GROUPS, 3, &request).await;
    let group = &seen.groups[0];
    assert_eq!((&group.group_state[..], &group.protocol_data[..]), ("Stable", "range"));
    assert_eq!(group.members[0].member_assignment, "all");
    let request = ListGroupsRequest::default();
    let listed: ListGroupsResponse = client.ask(LIST_GROUPS, 4, &request).await;
    assert_eq!(&listed.groups[0].group_state[..], "Stable");

    let server = server.restarted().await;
    let mut client = server.client().await;
    assert_eq!(heartbeat(&mut client, &joined).await, 0);
    for (generation, code) in [(joined.generation_id, 0), (joined.generation_id - 1, 22)] {
        let request = commit(generation, &joined.member_id, 7);
        let answer: OffsetCommitResponse = client.ask(OFFSET_COMMIT, 7, &request).await;
        assert_eq!(answer.topics[0].partitions[0].error_code, code);
    }
    assert_eq!(committed(&mut client).await, 7);
    let synced: SyncGroupResponse = client.ask(SYNC_GROUP, 3, &sync(&joined, &[])).await;
    assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"all"[..]));

    // Who has left is not there after a restart; generations go on.
    let request = LeaveGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_member_id(joined.member_id.clone());
    let left: LeaveGroupResponse = client.ask(LEAVE_GROUP, 2, &request).await;
    assert_eq!(left.error_code, 0);
    // What follows in the log is durable after it.
    let answer: OffsetCommitResponse = client.ask(OFFSET_COMMIT, 7, &commit(-1, "", 8)).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
    let server = server.restarted().await;
    let mut client = server.client().await;
    assert_eq!(heartbeat(&mut client, &joined).await, 25);
    let again = enter(&mut client).await;
    assert_eq!((again.error_code, again.generation_id), (0, joined.generation_id + 2));
}

#[tokio::test]
async fn a_group_without_members_keeps_offsets_until_it_is_deleted() {
    let server = Server::over(test_log(2).await.unwrap(), at_once()).await;
    server.topic("t", 1).await;
    let mut client = server.client().await;
    let answer: OffsetCommitResponse = client.ask(OFFSET_COMMIT, 7, &commit(-1, "", 5)).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
    assert_eq!(committed(&mut client).await, 5);
    let request = DeleteGroupsRequest::default().with_groups_names(vec![GroupId(text("g"))]);
    for code in [0, 69] {
        let answer: DeleteGroupsResponse = client.ask(DELETE_GROUPS, 1, &request).await;
        assert_eq!(answer.results[0].error_code, code);
    }
    assert_eq!(committed(&mut client).await, -1);
}

#[tokio::test]
async fn offsets_of_a_deleted_topic_do_not_come_back_with_its_name() {
    let server = Server::over(test_log(2).await.unwrap(), at_once()).await;
    server.topic("t", 1).await;
    let mut client = server.client().await;
    let _: OffsetCommitResponse = client.ask(OFFSET_COMMIT, 7, &commit(-1, "", 5)).await;
    server.log.delete_stream("t").await.unwrap();
    server.topic("t", 1).await;
    assert_eq!(committed(&mut client).await, -1);
}
