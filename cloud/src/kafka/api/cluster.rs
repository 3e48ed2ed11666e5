//! FindCoordinator (10) and DescribeCluster (60): who has a group, and who there is.

use crate::{
    cluster::View,
    engine::ShardId,
    kafka::{
        Client,
        error::Code,
        frame::{
            Request, StrBytes, text,
            wire::{
                describe_cluster_request::DescribeClusterRequest,
                describe_cluster_response::{DescribeClusterBroker, DescribeClusterResponse},
                find_coordinator_request::FindCoordinatorRequest,
                find_coordinator_response::{Coordinator, FindCoordinatorResponse},
            },
        },
        place,
    },
};

const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

/// Kinds of DescribeCluster endpoints.
const BROKERS: i8 = 1;

pub(super) async fn find_coordinator(
    client: &Client,
    request: &Request,
    asked: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let problem = match asked.key_type {
        GROUP => None,
        TRANSACTION => {
            let why = "transactions are not served";
            Some((Code::TransactionalIdAuthorizationFailed, why))
        }
        _ => Some((Code::InvalidRequest, "unknown kind of coordinator")),
    };
    let view = &client.head.cluster.view();
    let find = |key: StrBytes| {
        let home = match problem {
            None => home(client, view, &key)
                .ok_or((Code::CoordinatorNotAvailable, "nobody has the group at the moment")),
            Some(problem) => Err(problem),
        };
        let found = Coordinator::default().with_key(key);
        match home {
            Ok(home) => {
                found.with_node_id(home.id.into()).with_host(text(home.host)).with_port(home.port)
            }
            Err((code, why)) => found
                .with_node_id((-1).into())
                .with_port(-1)
                .with_error_code(code.number())
                .with_error_message(Some(StrBytes::from_static_str(why))),
        }
    };
    if request.version >= 4 {
        let found = asked.coordinator_keys.into_iter().map(find).collect();
        return FindCoordinatorResponse::default().with_coordinators(found);
    }
    let found = find(asked.key);
    FindCoordinatorResponse::default()
        .with_node_id(found.node_id)
        .with_host(found.host)
        .with_port(found.port)
        .with_error_code(found.error_code)
        .with_error_message(found.error_message)
}

/// Where a group's home is.
fn home(client: &Client, view: &View, group: &str) -> Option<super::Endpoint> {
    client.endpoint(view, view.owner(client.head.log.home_shard(group))?)
}

pub(super) async fn describe(
    client: &Client,
    request: &Request,
    asked: DescribeClusterRequest,
) -> DescribeClusterResponse {
    let view = &client.head.cluster.view();
    let response =
        DescribeClusterResponse::default().with_cluster_id(text(client.head.cluster_id(view)));
    if request.version >= 1 && asked.endpoint_type != BROKERS {
        let (code, why) =
            super::failure("only brokers can be asked for", Code::UnsupportedEndpoint);
        return response.with_error_code(code).with_error_message(why);
    }
    let brokers = client.endpoints(view).into_iter().map(|found| {
        DescribeClusterBroker::default()
            .with_broker_id(found.id.into())
            .with_host(text(found.host))
            .with_port(found.port)
    });
    let controller = place::number(view.leader(ShardId(0)).owner);
    let response = response.with_controller_id(controller.into()).with_brokers(brokers.collect());
    if asked.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(super::CLUSTER_OPERATIONS)
    } else {
        response
    }
}
