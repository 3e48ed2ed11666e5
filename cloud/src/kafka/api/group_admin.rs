//! DescribeGroups (15), ListGroups (16), DeleteGroups (42): groups as operators see them.

use crate::{
    group::Description,
    kafka::{
        Client,
        error::Code,
        frame::{
            Request, text,
            wire::{
                GroupId,
                delete_groups_request::DeleteGroupsRequest,
                delete_groups_response::{DeletableGroupResult, DeleteGroupsResponse},
                describe_groups_request::DescribeGroupsRequest,
                describe_groups_response::{
                    DescribeGroupsResponse, DescribedGroup, DescribedGroupMember,
                },
                list_groups_request::ListGroupsRequest,
                list_groups_response::{ListGroupsResponse, ListedGroup},
            },
        },
    },
};

/// All groups are of the classic protocol.
const TYPE: &str = "classic";

/// First version of DescribeGroups that says "not found" (KIP-1043); before, such a group is `Dead`.
const NOT_FOUND_FROM: i16 = 6;

pub(super) async fn describe(
    client: &Client,
    request: &Request,
    asked: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let operations = request.version >= 3 && asked.include_authorized_operations;
    let mut groups = Vec::with_capacity(asked.groups.len());
    for id in asked.groups {
        let asked = client.head.groups.describe(&id);
        let description = super::coordinated(client, &id, asked).await;
        let group = match description {
            Ok(Some(description)) => described(id, description),
            Ok(None) => {
                let dead =
                    DescribedGroup::default().with_group_id(id).with_group_state(text("Dead"));
                if request.version >= NOT_FOUND_FROM {
                    let (code, why) = super::failure("group not found", Code::GroupIdNotFound);
                    dead.with_error_code(code).with_error_message(why)
                } else {
                    dead
                }
            }
            Err((code, _)) => {
                DescribedGroup::default().with_group_id(id).with_error_code(code.number())
            }
        };
        groups.push(if operations {
            group.with_authorized_operations(super::GROUP_OPERATIONS)
        } else {
            group
        });
    }
    DescribeGroupsResponse::default().with_groups(groups)
}

fn described(id: GroupId, description: Description) -> DescribedGroup {
    let members = description.members.into_iter().map(|member| {
        DescribedGroupMember::default()
            .with_member_id(text(member.member_id))
            .with_group_instance_id(member.instance_id.map(text))
            .with_client_id(text(member.client_id))
            .with_client_host(text(format!("/{}", member.client_host)))
            .with_member_metadata(member.metadata)
            .with_member_assignment(member.assignment)
    });
    DescribedGroup::default()
        .with_group_id(id)
        .with_group_state(text(description.state))
        .with_protocol_type(text(description.protocol_type))
        .with_protocol_data(text(description.protocol))
        .with_members(members.collect())
}

pub(super) async fn list(client: &Client, asked: ListGroupsRequest) -> ListGroupsResponse {
    let all = match client.head.groups.list().await {
        Ok(all) => all,
        Err(error) => {
            return ListGroupsResponse::default().with_error_code(Code::from(&error).number());
        }
    };
    let asked_for = |filter: &[_], value: &str| {
        let same = |wanted: &super::StrBytes| wanted.eq_ignore_ascii_case(value);
        filter.is_empty() || filter.iter().any(same)
    };
    let groups = all
        .into_iter()
        .filter(|(_, group)| asked_for(&asked.states_filter, &group.state))
        .filter(|_| asked_for(&asked.types_filter, TYPE))
        .map(|(id, group)| {
            ListedGroup::default()
                .with_group_id(GroupId(text(id)))
                .with_protocol_type(text(group.protocol_type))
                .with_group_state(text(group.state))
                .with_group_type(text(TYPE))
        });
    ListGroupsResponse::default().with_groups(groups.collect())
}

pub(super) async fn delete(client: &Client, asked: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(asked.groups_names.len());
    for id in asked.groups_names {
        let deleted = client.head.groups.delete(&id);
        let failed = super::coordinated(client, &id, deleted).await.err();
        let code = failed.map_or(Code::None, |(code, _)| code);
        results
            .push(DeletableGroupResult::default().with_group_id(id).with_error_code(code.number()));
    }
    DeleteGroupsResponse::default().with_results(results)
}
