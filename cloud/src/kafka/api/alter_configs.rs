//! AlterConfigs (33) and IncrementalAlterConfigs (44): a topic's settings change.
//!
//! What is not enforced is refused, not stored.

use super::configs::{self, TOPIC};
use crate::{
    kafka::{
        Client,
        error::Code,
        frame::StrBytes,
        frame::wire::{
            alter_configs_request::AlterConfigsRequest,
            alter_configs_response::{
                AlterConfigsResourceResponse as Replaced, AlterConfigsResponse,
            },
            incremental_alter_configs_request::{AlterableConfig, IncrementalAlterConfigsRequest},
            incremental_alter_configs_response::{
                AlterConfigsResourceResponse as Changed, IncrementalAlterConfigsResponse,
            },
        },
    },
    log::{LogError, StreamConfig},
};

const SET: i8 = 0;
const DELETE: i8 = 1;

/// AlterConfigs: what is not named goes back to its default.
pub(super) async fn replace(client: &Client, asked: AlterConfigsRequest) -> AlterConfigsResponse {
    let mut responses = Vec::with_capacity(asked.resources.len());
    for resource in asked.resources {
        let edit = |_: StreamConfig| {
            let mut config = StreamConfig::default();
            for entry in &resource.configs {
                let value = entry.value.as_ref().map(StrBytes::as_str);
                configs::set(&mut config, &entry.name, value)?;
            }
            Ok(config)
        };
        let (kind, name) = (resource.resource_type, resource.resource_name.as_str());
        let done = alter(client, kind, name, asked.validate_only, edit).await;
        let (code, why) = told(done);
        responses.push(
            Replaced::default()
                .with_error_code(code)
                .with_error_message(why)
                .with_resource_type(kind)
                .with_resource_name(resource.resource_name),
        );
    }
    AlterConfigsResponse::default().with_responses(responses)
}

/// IncrementalAlterConfigs: what is not named stays.
pub(super) async fn change(
    client: &Client,
    asked: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let mut responses = Vec::with_capacity(asked.resources.len());
    for resource in asked.resources {
        let edit = |mut config: StreamConfig| {
            for entry in &resource.configs {
                edit_one(&mut config, entry)?;
            }
            Ok(config)
        };
        let (kind, name) = (resource.resource_type, resource.resource_name.as_str());
        let done = alter(client, kind, name, asked.validate_only, edit).await;
        let (code, why) = told(done);
        responses.push(
            Changed::default()
                .with_error_code(code)
                .with_error_message(why)
                .with_resource_type(kind)
                .with_resource_name(resource.resource_name),
        );
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

fn edit_one(config: &mut StreamConfig, entry: &AlterableConfig) -> Result<(), String> {
    let value = entry.value.as_ref().map(StrBytes::as_str);
    match (entry.config_operation, value) {
        (SET, Some(value)) => configs::set(config, &entry.name, Some(value)),
        (SET, None) => Err(format!("`{}` needs a value", entry.name)),
        (DELETE, _) => configs::set(config, &entry.name, None),
        _ => Err(format!("`{}` can be set and deleted, not appended to", entry.name)),
    }
}

async fn alter(
    client: &Client,
    kind: i8,
    name: &str,
    validate_only: bool,
    edit: impl FnOnce(StreamConfig) -> Result<StreamConfig, String>,
) -> Result<(), (Code, String)> {
    if kind != TOPIC {
        let why = "only topics can be changed here; the node has its settings file".to_owned();
        return Err((Code::InvalidRequest, why));
    }
    let log = &client.head.log;
    let failed = |error: LogError| (Code::of_change(&error), error.to_string());
    let stream =
        log.stream(name).ok_or_else(|| failed(LogError::StreamNotFound(name.to_owned())))?;
    let config = edit(stream.config.clone()).map_err(|why| (Code::InvalidConfig, why))?;
    if validate_only {
        return Ok(());
    }
    log.configure_stream(name, config).await.map(|_| ()).map_err(failed)
}

fn told(done: Result<(), (Code, String)>) -> (i16, Option<StrBytes>) {
    match done {
        Ok(()) => (Code::None.number(), None),
        Err((code, why)) => super::failure(why, code),
    }
}
