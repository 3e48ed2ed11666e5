//! DISCONNECT and AUTH (3.14, 3.15).

use super::{Cursor, Malformed};
use crate::mqtt::{
    check::{self, Sender},
    packet::{Auth, Disconnect, Reason, Version},
    property::{self, Value, id},
};

pub(super) fn disconnect(
    cursor: &mut Cursor,
    version: Version,
    from: Sender,
) -> Result<Disconnect, Malformed> {
    let mut disconnect = Disconnect::new(Reason::SUCCESS);
    if version != Version::V5 || cursor.is_empty() {
        return Ok(disconnect);
    }
    disconnect.reason = Reason(cursor.u8()?);
    if !check::is_disconnect_reason(disconnect.reason, from) {
        return Err(Malformed::protocol("reason code is not legal in DISCONNECT (table 3-10)"));
    }
    if cursor.is_empty() {
        return Ok(disconnect);
    }
    let allowed = match from {
        Sender::Client => property::CLIENT_DISCONNECT,
        Sender::Server => property::SERVER_DISCONNECT,
    };
    property::read(cursor, allowed, |id, value| {
        match (id, value) {
            (id::SESSION_EXPIRY, Value::Four(seconds)) => disconnect.session_expiry = Some(seconds),
            (id::SERVER_REFERENCE, Value::Text(text)) => disconnect.server_reference = Some(text),
            (id, value) => property::set_answer(
                &mut disconnect.reason_string,
                &mut disconnect.user_properties,
                id,
                value,
            )?,
        }
        Ok(())
    })?;
    Ok(disconnect)
}

pub(super) fn auth(cursor: &mut Cursor, from: Sender) -> Result<Auth, Malformed> {
    let mut auth = Auth {
        reason: Reason::SUCCESS,
        method: None,
        data: None,
        reason_string: None,
        user_properties: Vec::new(),
    };
    let whole = !cursor.is_empty();
    if whole {
        auth.reason = Reason(cursor.u8()?);
        property::read(cursor, property::AUTH, |id, value| {
            match (id, value) {
                (id::AUTHENTICATION_METHOD, Value::Text(text)) => auth.method = Some(text),
                (id::AUTHENTICATION_DATA, Value::Binary(data)) => auth.data = Some(data),
                (id, value) => property::set_answer(
                    &mut auth.reason_string,
                    &mut auth.user_properties,
                    id,
                    value,
                )?,
            }
            Ok(())
        })?;
    }
    if !check::is_auth_reason(auth.reason, from) {
        return Err(Malformed::protocol("reason code is not legal in AUTH (table 3-11)"));
    }
    if whole && auth.method.is_none() {
        return Err(Malformed::protocol("AUTH without a method (MQTT 5, 3.15.2.2.2)"));
    }
    Ok(auth)
}
