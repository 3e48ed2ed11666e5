//! InitProducerId (22): an id for an idempotent producer, never given before. Transactions are refused.

use crate::{
    kafka::{
        Client,
        error::Code,
        frame::wire::{
            init_producer_id_request::InitProducerIdRequest,
            init_producer_id_response::InitProducerIdResponse,
        },
    },
    log::LogError,
};

pub(super) async fn answer(
    client: &Client,
    asked: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let refused = |code: Code| {
        InitProducerIdResponse::default()
            .with_error_code(code.number())
            .with_producer_id((-1).into())
            .with_producer_epoch(-1)
    };
    if asked.transactional_id.is_some() {
        return refused(Code::TransactionalIdAuthorizationFailed);
    }
    match client.head.producer_ids.next().await {
        Ok(id) => {
            InitProducerIdResponse::default().with_producer_id(id.into()).with_producer_epoch(0)
        }
        // No shard is here to count them in: another node has one.
        Err(LogError::NotOwner) => refused(Code::CoordinatorLoadInProgress),
        Err(error) => refused(Code::from(&error)),
    }
}
