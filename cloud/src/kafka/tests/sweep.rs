//! Every API and version that is advertised.

use super::{Server, samples::sample};
use crate::kafka::{
    frame::{Decodable, Encodable, Request, wire::*},
    guard,
    schema::{self, TABLE},
};

#[test]
fn the_guard_walks_every_request_to_its_last_byte() {
    for api in TABLE {
        for version in api.min..=api.max {
            let body = sample(api.key, version);
            let walked = guard::check(api, version, &body);
            assert_eq!(walked, Ok(body.len()), "key {} version {version}", api.key);
        }
    }
}

fn round_trips<T: Decodable + Encodable + PartialEq + std::fmt::Debug>(key: i16, version: i16) {
    let body = sample(key, version);
    let decoded = T::decode(&mut body.clone(), version).unwrap();
    let mut again = Vec::new();
    decoded.encode(&mut again, version).unwrap();
    assert_eq!(body, again, "key {key} version {version}");
}

#[test]
fn a_field_that_a_version_lacks_has_its_default() {
    let request =
        |key, version, body| Request { key, version, correlation: 0, client_id: None, body };
    let old = request(schema::INIT_PRODUCER_ID, 2, sample(schema::INIT_PRODUCER_ID, 2));
    let old: InitProducerIdRequest = old.decode().unwrap();
    assert_eq!((old.producer_id.0, old.producer_epoch), (-1, -1));
    let old = request(schema::JOIN_GROUP, 0, sample(schema::JOIN_GROUP, 0));
    let old: JoinGroupRequest = old.decode().unwrap();
    assert_eq!((old.rebalance_timeout_ms, old.group_instance_id), (-1, None));
    let old = request(schema::OFFSET_COMMIT, 2, sample(schema::OFFSET_COMMIT, 2));
    let old: OffsetCommitRequest = old.decode().unwrap();
    assert_eq!(old.topics[0].partitions[0].committed_leader_epoch, -1);
    round_trips::<MetadataRequest>(schema::METADATA, 0);
    let old = request(schema::METADATA, 0, sample(schema::METADATA, 0));
    let old: MetadataRequest = old.decode().unwrap();
    assert!(old.allow_auto_topic_creation);
}

#[tokio::test]
async fn every_version_gets_an_answer_of_that_version() {
    let server = Server::start().await;
    server.topic("t", 2).await;
    let mut client = server.client().await;
    for api in TABLE {
        for version in api.min..=api.max {
            if api.key == schema::PRODUCE && version < 3 {
                continue;
            }
            client.send(api.key, version, &sample(api.key, version)).await;
            macro_rules! answer {
                ($response:ty) => {{
                    let (_, answer) = client.receive_as::<$response>(version).await;
                    answer
                }};
            }
            match api.key {
                schema::PRODUCE => {
                    let answer = answer!(ProduceResponse);
                    assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
                }
                schema::FETCH => {
                    let answer = answer!(FetchResponse);
                    let expected = if version >= 13 { 100 } else { 0 };
                    assert_eq!(answer.responses[0].partitions[0].error_code, expected);
                }
                schema::LIST_OFFSETS => {
                    let answer = answer!(ListOffsetsResponse);
                    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
                }
                schema::METADATA => {
                    let answer = answer!(MetadataResponse);
                    assert_eq!((answer.brokers.len(), answer.topics[0].error_code), (1, 0));
                }
                schema::OFFSET_COMMIT => {
                    let answer = answer!(OffsetCommitResponse);
                    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
                }
                schema::OFFSET_FETCH => {
                    let answer = answer!(OffsetFetchResponse);
                    let offset = if version >= 8 {
                        answer.groups[0].topics[0].partitions[0].committed_offset
                    } else {
                        answer.topics[0].partitions[0].committed_offset
                    };
                    assert_eq!(offset, 7);
                }
                schema::FIND_COORDINATOR => {
                    let answer = answer!(FindCoordinatorResponse);
                    let code =
                        answer.coordinators.first().map_or(answer.error_code, |c| c.error_code);
                    assert_eq!(code, 0);
                }
                schema::JOIN_GROUP => {
                    let answer = answer!(JoinGroupResponse);
                    // Version 4 is told its id and to come again; static members are not.
                    assert_eq!(answer.error_code, if version == 4 { 79 } else { 0 }, "{version}");
                    let left = client_leaves(&server, &answer, version).await;
                    assert_eq!(left.error_code, 0);
                }
                schema::HEARTBEAT => assert_eq!(answer!(HeartbeatResponse).error_code, 25),
                schema::LEAVE_GROUP => {
                    let answer = answer!(LeaveGroupResponse);
                    let code = answer.members.first().map_or(answer.error_code, |m| m.error_code);
                    assert_eq!(code, 25);
                }
                schema::SYNC_GROUP => assert_eq!(answer!(SyncGroupResponse).error_code, 25),
                schema::DESCRIBE_GROUPS => {
                    assert_eq!(answer!(DescribeGroupsResponse).groups[0].group_state, *"Empty");
                }
                schema::LIST_GROUPS => assert_eq!(answer!(ListGroupsResponse).groups.len(), 1),
                schema::API_VERSIONS => {
                    assert_eq!(answer!(ApiVersionsResponse).api_keys.len(), TABLE.len());
                }
                schema::CREATE_TOPICS => {
                    assert_eq!(answer!(CreateTopicsResponse).topics[0].error_code, 0);
                }
                schema::DELETE_TOPICS => {
                    assert_eq!(answer!(DeleteTopicsResponse).responses[0].error_code, 3);
                }
                schema::DELETE_RECORDS => {
                    let answer = answer!(DeleteRecordsResponse);
                    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
                }
                schema::INIT_PRODUCER_ID => {
                    assert_eq!(answer!(InitProducerIdResponse).error_code, 0);
                }
                schema::OFFSET_FOR_LEADER_EPOCH => {
                    let answer = answer!(OffsetForLeaderEpochResponse);
                    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
                }
                schema::DESCRIBE_CONFIGS => {
                    let answer = answer!(DescribeConfigsResponse);
                    assert_eq!(answer.results[0].configs.len(), 1);
                }
                schema::ALTER_CONFIGS => {
                    assert_eq!(answer!(AlterConfigsResponse).responses[0].error_code, 0);
                }
                schema::CREATE_PARTITIONS => {
                    let code = answer!(CreatePartitionsResponse).results[0].error_code;
                    assert_eq!(code, if version == 0 { 37 } else { 0 });
                }
                schema::DELETE_GROUPS => {
                    let code = answer!(DeleteGroupsResponse).results[0].error_code;
                    assert_eq!(code, if version == 0 { 0 } else { 69 });
                }
                schema::INCREMENTAL_ALTER_CONFIGS => {
                    let answer = answer!(IncrementalAlterConfigsResponse);
                    assert_eq!(answer.responses[0].error_code, 0);
                }
                schema::OFFSET_DELETE => assert_eq!(answer!(OffsetDeleteResponse).error_code, 69),
                schema::DESCRIBE_CLUSTER => {
                    assert_eq!(answer!(DescribeClusterResponse).brokers.len(), 1);
                }
                key => panic!("key {key} is advertised and not tested"),
            }
        }
    }
}

/// So that the next version meets an empty group.
async fn client_leaves(
    server: &Server,
    joined: &JoinGroupResponse,
    version: i16,
) -> LeaveGroupResponse {
    use leave_group_request::*;
    let member = MemberIdentity::default()
        .with_member_id(joined.member_id.clone())
        .with_group_instance_id((version >= 5).then(|| crate::kafka::frame::text("i")));
    let request = LeaveGroupRequest::default()
        .with_group_id(GroupId(crate::kafka::frame::text("g")))
        .with_members(vec![member]);
    let left: LeaveGroupResponse =
        server.client().await.ask(schema::LEAVE_GROUP, 5, &request).await;
    assert_eq!(left.members[0].error_code, 0);
    left
}
