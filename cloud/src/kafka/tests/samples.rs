//! A filled request of every API and version we advertise, as a client would encode it.

use bytes::{Bytes, BytesMut};
use tributary_shared::record::{BatchBuilder, Compression, Record};
use uuid::Uuid;

use crate::kafka::{
    frame::{Encodable, text, wire::*},
    schema,
};

fn encoded(request: &impl Encodable, version: i16) -> Bytes {
    let mut body = BytesMut::new();
    request.encode(&mut body, version).expect("a sample encodes");
    body.freeze()
}

pub(super) fn batch(values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new();
    for value in values {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        builder.push(&Record { value, timestamp_ms: 1_000, ..Record::default() });
    }
    builder.finish(Compression::None, None).expect("a batch").bytes().clone()
}

/// The body of a request about topic `t`, group `g`.
#[expect(clippy::too_many_lines, reason = "a table")]
pub(super) fn sample(key: i16, version: i16) -> Bytes {
    let v = version;
    let topic = || TopicName(text("t"));
    let group = || GroupId(text("g"));
    match key {
        schema::PRODUCE if v < 3 => {
            // Version 3 without its first field.
            sample(key, 3).slice(2..)
        }
        schema::PRODUCE => {
            use produce_request::*;
            let partition = PartitionProduceData::default().with_records(Some(batch(&["a", "b"])));
            let topic =
                TopicProduceData::default().with_name(topic()).with_partition_data(vec![partition]);
            encoded(&ProduceRequest::default().with_acks(-1).with_topic_data(vec![topic]), v)
        }
        schema::FETCH => {
            use fetch_request::*;
            let partition = FetchPartition::default().with_partition_max_bytes(1000);
            let mut topic_ = FetchTopic::default().with_partitions(vec![partition]);
            let mut forgotten = ForgottenTopic::default().with_partitions(vec![1, 2]);
            if v >= 13 {
                topic_ = topic_.with_topic_id(Uuid::new_v4());
                forgotten = forgotten.with_topic_id(Uuid::new_v4());
            } else {
                topic_ = topic_.with_topic(topic());
                forgotten = forgotten.with_topic(topic());
            }
            let mut request =
                FetchRequest::default().with_max_bytes(1000).with_topics(vec![topic_]);
            if v >= 7 {
                request = request.with_forgotten_topics_data(vec![forgotten]);
            }
            if v >= 11 {
                request = request.with_rack_id(text("rack"));
            }
            encoded(&request, v)
        }
        schema::LIST_OFFSETS => {
            use list_offsets_request::*;
            let partition = ListOffsetsPartition::default().with_timestamp(-1);
            let topic =
                ListOffsetsTopic::default().with_name(topic()).with_partitions(vec![partition]);
            encoded(&ListOffsetsRequest::default().with_topics(vec![topic]), v)
        }
        schema::METADATA => {
            use metadata_request::*;
            let topic = MetadataRequestTopic::default().with_name(Some(topic()));
            let mut request = MetadataRequest::default().with_topics(Some(vec![topic]));
            if (8..=10).contains(&v) {
                request = request.with_include_cluster_authorized_operations(true);
            }
            if v >= 8 {
                request = request.with_include_topic_authorized_operations(true);
            }
            encoded(&request, v)
        }
        schema::OFFSET_COMMIT => {
            use offset_commit_request::*;
            let partition = OffsetCommitRequestPartition::default()
                .with_committed_offset(7)
                .with_committed_metadata(Some(text("m")));
            let topic = OffsetCommitRequestTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition]);
            let request = OffsetCommitRequest::default().with_group_id(group());
            encoded(&request.with_topics(vec![topic]), v)
        }
        schema::OFFSET_FETCH => {
            use offset_fetch_request::*;
            let mut request = OffsetFetchRequest::default();
            if v >= 8 {
                let topic = OffsetFetchRequestTopics::default()
                    .with_name(topic())
                    .with_partition_indexes(vec![0, 1]);
                let asked = OffsetFetchRequestGroup::default().with_group_id(group());
                request = request.with_groups(vec![asked.with_topics(Some(vec![topic]))]);
            } else {
                let topic = OffsetFetchRequestTopic::default()
                    .with_name(topic())
                    .with_partition_indexes(vec![0, 1]);
                request = request.with_group_id(group()).with_topics(Some(vec![topic]));
            }
            encoded(&request, v)
        }
        schema::FIND_COORDINATOR => {
            let request = FindCoordinatorRequest::default();
            let request = if v >= 4 {
                request.with_coordinator_keys(vec![text("g"), text("h")])
            } else {
                request.with_key(text("g"))
            };
            encoded(&request, v)
        }
        schema::JOIN_GROUP => {
            use join_group_request::*;
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(text("range"))
                .with_metadata(Bytes::from_static(b"abc"));
            let mut request = JoinGroupRequest::default()
                .with_group_id(group())
                .with_session_timeout_ms(10_000)
                .with_protocol_type(text("consumer"))
                .with_protocols(vec![protocol]);
            if v >= 5 {
                request = request.with_group_instance_id(Some(text("i")));
            }
            if v >= 8 {
                request = request.with_reason(Some(text("why")));
            }
            encoded(&request, v)
        }
        schema::HEARTBEAT => {
            let request = HeartbeatRequest::default().with_group_id(group());
            encoded(&request.with_member_id(text("m")), v)
        }
        schema::LEAVE_GROUP => {
            use leave_group_request::*;
            let request = LeaveGroupRequest::default().with_group_id(group());
            let request = if v >= 3 {
                request.with_members(vec![MemberIdentity::default().with_member_id(text("m"))])
            } else {
                request.with_member_id(text("m"))
            };
            encoded(&request, v)
        }
        schema::SYNC_GROUP => {
            use sync_group_request::*;
            let assignment = SyncGroupRequestAssignment::default()
                .with_member_id(text("m"))
                .with_assignment(Bytes::from_static(b"abc"));
            let mut request = SyncGroupRequest::default()
                .with_group_id(group())
                .with_assignments(vec![assignment]);
            if v >= 5 {
                request = request.with_protocol_name(Some(text("range")));
            }
            encoded(&request, v)
        }
        schema::DESCRIBE_GROUPS => {
            let request = DescribeGroupsRequest::default().with_groups(vec![group()]);
            encoded(&request.with_include_authorized_operations(v >= 3), v)
        }
        schema::LIST_GROUPS => {
            let mut request = ListGroupsRequest::default();
            if v >= 4 {
                request = request.with_states_filter(vec![text("Stable"), text("Empty")]);
            }
            if v >= 5 {
                request = request.with_types_filter(vec![text("classic")]);
            }
            encoded(&request, v)
        }
        schema::API_VERSIONS => {
            let mut request = ApiVersionsRequest::default();
            if v >= 3 {
                request = request
                    .with_client_software_name(text("test"))
                    .with_client_software_version(text("1.0"));
            }
            encoded(&request, v)
        }
        schema::CREATE_TOPICS => {
            use create_topics_request::*;
            let assignment =
                CreatableReplicaAssignment::default().with_broker_ids(vec![BrokerId(1)]);
            let config = CreatableTopicConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("1000")));
            let topic = CreatableTopic::default()
                .with_name(TopicName(text(format!("made-{v}"))))
                .with_num_partitions(-1)
                .with_replication_factor(-1)
                .with_assignments(vec![assignment])
                .with_configs(vec![config]);
            encoded(&CreateTopicsRequest::default().with_topics(vec![topic]), v)
        }
        schema::DELETE_TOPICS => {
            use delete_topics_request::*;
            let request = DeleteTopicsRequest::default();
            let name = TopicName(text("gone"));
            let request = if v >= 6 {
                request.with_topics(vec![DeleteTopicState::default().with_name(Some(name))])
            } else {
                request.with_topic_names(vec![name])
            };
            encoded(&request, v)
        }
        schema::DELETE_RECORDS => {
            use delete_records_request::*;
            let topic = DeleteRecordsTopic::default()
                .with_name(topic())
                .with_partitions(vec![DeleteRecordsPartition::default().with_offset(-1)]);
            encoded(&DeleteRecordsRequest::default().with_topics(vec![topic]), v)
        }
        schema::INIT_PRODUCER_ID => {
            let request = InitProducerIdRequest::default().with_transaction_timeout_ms(1);
            encoded(&request.with_transactional_id(None), v)
        }
        schema::OFFSET_FOR_LEADER_EPOCH => {
            use offset_for_leader_epoch_request::*;
            let topic = OffsetForLeaderTopic::default()
                .with_topic(topic())
                .with_partitions(vec![OffsetForLeaderPartition::default()]);
            encoded(&OffsetForLeaderEpochRequest::default().with_topics(vec![topic]), v)
        }
        schema::DESCRIBE_CONFIGS => {
            use describe_configs_request::*;
            let resource = DescribeConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("t"))
                .with_configuration_keys(Some(vec![text("retention.ms"), text("x")]));
            let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
            encoded(&request.with_include_synonyms(true), v)
        }
        schema::ALTER_CONFIGS => {
            use alter_configs_request::*;
            let config = AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("5000")));
            let resource = AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("t"))
                .with_configs(vec![config]);
            encoded(&AlterConfigsRequest::default().with_resources(vec![resource]), v)
        }
        schema::CREATE_PARTITIONS => {
            use create_partitions_request::*;
            let assignment =
                CreatePartitionsAssignment::default().with_broker_ids(vec![BrokerId(1)]);
            let topic = CreatePartitionsTopic::default()
                .with_name(topic())
                .with_count(2 + i32::from(v))
                .with_assignments(Some(vec![assignment]));
            encoded(&CreatePartitionsRequest::default().with_topics(vec![topic]), v)
        }
        schema::DELETE_GROUPS => {
            encoded(&DeleteGroupsRequest::default().with_groups_names(vec![group()]), v)
        }
        schema::INCREMENTAL_ALTER_CONFIGS => {
            use incremental_alter_configs_request::*;
            let config = AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("6000")));
            let resource = AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text("t"))
                .with_configs(vec![config]);
            encoded(&IncrementalAlterConfigsRequest::default().with_resources(vec![resource]), v)
        }
        schema::OFFSET_DELETE => {
            use offset_delete_request::*;
            let topic = OffsetDeleteRequestTopic::default()
                .with_name(topic())
                .with_partitions(vec![OffsetDeleteRequestPartition::default()]);
            let request = OffsetDeleteRequest::default().with_group_id(group());
            encoded(&request.with_topics(vec![topic]), v)
        }
        schema::DESCRIBE_CLUSTER => encoded(&DescribeClusterRequest::default(), v),
        _ => panic!("no sample for key {key}"),
    }
}
