//! JoinGroup (11), Heartbeat (12), LeaveGroup (13), SyncGroup (14): the wire forms of `group`'s questions.

use bytes::Bytes;

use crate::{
    group::{GroupError, Join, MemberRef, Sync},
    kafka::{
        Client,
        error::Code,
        frame::{
            Request, StrBytes, text,
            wire::{
                heartbeat_request::HeartbeatRequest,
                heartbeat_response::HeartbeatResponse,
                join_group_request::JoinGroupRequest,
                join_group_response::{JoinGroupResponse, JoinGroupResponseMember},
                leave_group_request::LeaveGroupRequest,
                leave_group_response::{LeaveGroupResponse, MemberResponse},
                sync_group_request::SyncGroupRequest,
                sync_group_response::SyncGroupResponse,
            },
        },
    },
};

/// First version of JoinGroup that makes new members come again with the id they were given (KIP-394).
const ID_REQUIRED_FROM: i16 = 4;

/// First version of JoinGroup in which a leader can be told to keep the assignment (KIP-814).
const SKIP_ASSIGNMENT_FROM: i16 = 9;

/// First version of JoinGroup with a nullable protocol name.
const NULL_PROTOCOL_FROM: i16 = 7;

fn member(id: &StrBytes, instance_id: Option<&StrBytes>) -> MemberRef {
    MemberRef { member_id: id.to_string(), instance_id: instance_id.map(ToString::to_string) }
}

fn number(client: &Client, group: &str, result: Result<(), GroupError>) -> i16 {
    let code = |error: GroupError| client.head.group_code(group, &error).number();
    result.map_or_else(code, |()| Code::None.number())
}

pub(super) async fn join(
    client: &Client,
    request: &Request,
    asked: JoinGroupRequest,
) -> JoinGroupResponse {
    let protocols = asked.protocols.iter().map(|p| (p.name.to_string(), p.metadata.clone()));
    let join = Join {
        member: member(&asked.member_id, asked.group_instance_id.as_ref()),
        client_id: request.client_id.clone().unwrap_or_default(),
        client_host: client.peer.clone(),
        session_timeout_ms: i64::from(asked.session_timeout_ms),
        rebalance_timeout_ms: i64::from(asked.rebalance_timeout_ms),
        protocol_type: asked.protocol_type.to_string(),
        protocols: protocols.collect(),
        id_required: request.version >= ID_REQUIRED_FROM,
        can_skip_assignment: request.version >= SKIP_ASSIGNMENT_FROM,
    };
    let groups = &client.head.groups;
    match super::coordinated(client, &asked.group_id, groups.join(&asked.group_id, join)).await {
        Ok(joined) => {
            let members = joined.members.into_iter().map(|member| {
                JoinGroupResponseMember::default()
                    .with_member_id(text(member.member_id))
                    .with_group_instance_id(member.instance_id.map(text))
                    .with_metadata(member.metadata)
            });
            JoinGroupResponse::default()
                .with_generation_id(joined.generation)
                .with_protocol_type(Some(text(joined.protocol_type)))
                .with_protocol_name(Some(text(joined.protocol)))
                .with_leader(text(joined.leader))
                .with_skip_assignment(joined.skip_assignment)
                .with_member_id(text(joined.member_id))
                .with_members(members.collect())
        }
        Err((code, error)) => {
            let member_id = match &error {
                Some(GroupError::MemberIdRequired { member_id }) => text(member_id.as_str()),
                _ => asked.member_id,
            };
            let protocol = (request.version < NULL_PROTOCOL_FROM).then(StrBytes::new);
            JoinGroupResponse::default()
                .with_error_code(code.number())
                .with_generation_id(-1)
                .with_protocol_name(protocol)
                .with_member_id(member_id)
        }
    }
}

pub(super) async fn sync(client: &Client, asked: SyncGroupRequest) -> SyncGroupResponse {
    let assignments =
        asked.assignments.into_iter().map(|a| (a.member_id.to_string(), a.assignment)).collect();
    let sync = Sync {
        member: member(&asked.member_id, asked.group_instance_id.as_ref()),
        generation: asked.generation_id,
        protocol_type: asked.protocol_type.map(|name| name.to_string()),
        protocol: asked.protocol_name.map(|name| name.to_string()),
        assignments,
    };
    let groups = &client.head.groups;
    match super::coordinated(client, &asked.group_id, groups.sync(&asked.group_id, sync)).await {
        Ok(synced) => SyncGroupResponse::default()
            .with_protocol_type(Some(text(synced.protocol_type)))
            .with_protocol_name(Some(text(synced.protocol)))
            .with_assignment(synced.assignment),
        Err((code, _)) => SyncGroupResponse::default()
            .with_error_code(code.number())
            .with_assignment(Bytes::new()),
    }
}

pub(super) async fn heartbeat(client: &Client, asked: HeartbeatRequest) -> HeartbeatResponse {
    let who = member(&asked.member_id, asked.group_instance_id.as_ref());
    let (group, generation) = (&asked.group_id, asked.generation_id);
    let alive = client.head.groups.heartbeat(group, who, generation);
    let code = super::coordinated(client, group, alive).await.err().map(|(code, _)| code);
    HeartbeatResponse::default().with_error_code(code.unwrap_or(Code::None).number())
}

pub(super) async fn leave(
    client: &Client,
    request: &Request,
    asked: LeaveGroupRequest,
) -> LeaveGroupResponse {
    let many = request.version >= 3;
    let members: Vec<MemberRef> = if many {
        asked.members.iter().map(|m| member(&m.member_id, m.group_instance_id.as_ref())).collect()
    } else {
        vec![member(&asked.member_id, None)]
    };
    let group = &asked.group_id;
    let leaving = client.head.groups.leave(group, members);
    let results = match super::coordinated(client, group, leaving).await {
        Ok(results) => results,
        Err((code, _)) => return LeaveGroupResponse::default().with_error_code(code.number()),
    };
    if !many {
        let result = results.into_iter().next().unwrap_or(Ok(()));
        return LeaveGroupResponse::default().with_error_code(number(client, group, result));
    }
    let members = asked.members.into_iter().zip(results).map(|(member, result)| {
        MemberResponse::default()
            .with_member_id(member.member_id)
            .with_group_instance_id(member.group_instance_id)
            .with_error_code(number(client, group, result))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}
