//! FindCoordinator (10) and DescribeCluster (60): this node, always.

use crate::kafka::{
    Client, NODE,
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
    let find = |key: StrBytes| {
        let found = Coordinator::default().with_key(key);
        match problem {
            None => found
                .with_node_id(NODE.into())
                .with_host(text(client.host.as_str()))
                .with_port(i32::from(client.port)),
            Some((code, why)) => found
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

pub(super) async fn describe(
    client: &Client,
    request: &Request,
    asked: DescribeClusterRequest,
) -> DescribeClusterResponse {
    let response =
        DescribeClusterResponse::default().with_cluster_id(text(client.head.cluster_id.as_str()));
    if request.version >= 1 && asked.endpoint_type != BROKERS {
        let (code, why) =
            super::failure("only brokers can be asked for", Code::UnsupportedEndpoint);
        return response.with_error_code(code).with_error_message(why);
    }
    let broker = DescribeClusterBroker::default()
        .with_broker_id(NODE.into())
        .with_host(text(client.host.as_str()))
        .with_port(i32::from(client.port));
    let response = response.with_controller_id(NODE.into()).with_brokers(vec![broker]);
    if asked.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(super::CLUSTER_OPERATIONS)
    } else {
        response
    }
}
