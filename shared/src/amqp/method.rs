//! The methods of AMQP 0-9-1 and of RabbitMQ's extensions (confirm, exchange.bind, basic.nack, connection.blocked).

use bytes::{BufMut, Bytes};
use bytestring::ByteString;

use super::{
    table::Table,
    wire::{Field, Malformed, Reader, Writer},
};

macro_rules! methods {
    ($( $name:ident $class:literal $method:literal { $( $field:ident : $ty:ty ),* } )*) => {
        /// One method with its arguments, in the order of the wire.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)]
        pub enum Method { $( $name { $( $field: $ty ),* } ),* }

        impl Method {
            /// Class and method number.
            pub fn id(&self) -> (u16, u16) {
                match self { $( Self::$name { .. } => ($class, $method) ),* }
            }

            fn read(id: (u16, u16), reader: &mut Reader) -> Result<Self, Malformed> {
                Ok(match id {
                    $( ($class, $method) => Self::$name { $( $field: <$ty as Field>::read(reader)? ),* }, )*
                    (10 | 20 | 40 | 50 | 60 | 85 | 90, method) => return Err(Malformed::UnknownMethod(id.0, method)),
                    (class, _) => return Err(Malformed::UnknownClass(class)),
                })
            }

            fn write(&self, writer: &mut Writer<'_>) {
                match self { $( Self::$name { $( $field ),* } => { $( $field.write(writer); )* let _ = writer; } ),* }
            }

            /// `queue.declare` and the like; for texts.
            pub fn name(&self) -> &'static str {
                match self { $( Self::$name { .. } => stringify!($name) ),* }
            }
        }
    };
}

type Short = ByteString;
type Long = Bytes;

methods! {
    ConnectionStart 10 10 { version_major: u8, version_minor: u8, server_properties: Table, mechanisms: Long, locales: Long }
    ConnectionStartOk 10 11 { client_properties: Table, mechanism: Short, response: Long, locale: Short }
    ConnectionSecure 10 20 { challenge: Long }
    ConnectionSecureOk 10 21 { response: Long }
    ConnectionTune 10 30 { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionTuneOk 10 31 { channel_max: u16, frame_max: u32, heartbeat: u16 }
    ConnectionOpen 10 40 { virtual_host: Short, capabilities: Short, insist: bool }
    ConnectionOpenOk 10 41 { known_hosts: Short }
    ConnectionClose 10 50 { reply_code: u16, reply_text: Short, class_id: u16, method_id: u16 }
    ConnectionCloseOk 10 51 {}
    ConnectionBlocked 10 60 { reason: Short }
    ConnectionUnblocked 10 61 {}
    ConnectionUpdateSecret 10 70 { new_secret: Long, reason: Short }
    ConnectionUpdateSecretOk 10 71 {}
    ChannelOpen 20 10 { out_of_band: Short }
    ChannelOpenOk 20 11 { channel_id: Long }
    ChannelFlow 20 20 { active: bool }
    ChannelFlowOk 20 21 { active: bool }
    ChannelClose 20 40 { reply_code: u16, reply_text: Short, class_id: u16, method_id: u16 }
    ChannelCloseOk 20 41 {}
    ExchangeDeclare 40 10 { ticket: u16, exchange: Short, kind: Short, passive: bool, durable: bool, auto_delete: bool,
        internal: bool, nowait: bool, arguments: Table }
    ExchangeDeclareOk 40 11 {}
    ExchangeDelete 40 20 { ticket: u16, exchange: Short, if_unused: bool, nowait: bool }
    ExchangeDeleteOk 40 21 {}
    ExchangeBind 40 30 { ticket: u16, destination: Short, source: Short, routing_key: Short, nowait: bool, arguments: Table }
    ExchangeBindOk 40 31 {}
    ExchangeUnbind 40 40 { ticket: u16, destination: Short, source: Short, routing_key: Short, nowait: bool, arguments: Table }
    ExchangeUnbindOk 40 51 {}
    QueueDeclare 50 10 { ticket: u16, queue: Short, passive: bool, durable: bool, exclusive: bool, auto_delete: bool,
        nowait: bool, arguments: Table }
    QueueDeclareOk 50 11 { queue: Short, message_count: u32, consumer_count: u32 }
    QueueBind 50 20 { ticket: u16, queue: Short, exchange: Short, routing_key: Short, nowait: bool, arguments: Table }
    QueueBindOk 50 21 {}
    QueuePurge 50 30 { ticket: u16, queue: Short, nowait: bool }
    QueuePurgeOk 50 31 { message_count: u32 }
    QueueDelete 50 40 { ticket: u16, queue: Short, if_unused: bool, if_empty: bool, nowait: bool }
    QueueDeleteOk 50 41 { message_count: u32 }
    QueueUnbind 50 50 { ticket: u16, queue: Short, exchange: Short, routing_key: Short, arguments: Table }
    QueueUnbindOk 50 51 {}
    BasicQos 60 10 { prefetch_size: u32, prefetch_count: u16, global: bool }
    BasicQosOk 60 11 {}
    BasicConsume 60 20 { ticket: u16, queue: Short, consumer_tag: Short, no_local: bool, no_ack: bool, exclusive: bool,
        nowait: bool, arguments: Table }
    BasicConsumeOk 60 21 { consumer_tag: Short }
    BasicCancel 60 30 { consumer_tag: Short, nowait: bool }
    BasicCancelOk 60 31 { consumer_tag: Short }
    BasicPublish 60 40 { ticket: u16, exchange: Short, routing_key: Short, mandatory: bool, immediate: bool }
    BasicReturn 60 50 { reply_code: u16, reply_text: Short, exchange: Short, routing_key: Short }
    BasicDeliver 60 60 { consumer_tag: Short, delivery_tag: u64, redelivered: bool, exchange: Short, routing_key: Short }
    BasicGet 60 70 { ticket: u16, queue: Short, no_ack: bool }
    BasicGetOk 60 71 { delivery_tag: u64, redelivered: bool, exchange: Short, routing_key: Short, message_count: u32 }
    BasicGetEmpty 60 72 { cluster_id: Short }
    BasicAck 60 80 { delivery_tag: u64, multiple: bool }
    BasicReject 60 90 { delivery_tag: u64, requeue: bool }
    BasicRecoverAsync 60 100 { requeue: bool }
    BasicRecover 60 110 { requeue: bool }
    BasicRecoverOk 60 111 {}
    BasicNack 60 120 { delivery_tag: u64, multiple: bool, requeue: bool }
    ConfirmSelect 85 10 { nowait: bool }
    ConfirmSelectOk 85 11 {}
    TxSelect 90 10 {}
    TxSelectOk 90 11 {}
    TxCommit 90 20 {}
    TxCommitOk 90 21 {}
    TxRollback 90 30 {}
    TxRollbackOk 90 31 {}
}

impl Method {
    /// From a method frame's payload. On an error the method's numbers are there if they could be read.
    pub fn decode(payload: Bytes) -> Result<Self, (Malformed, (u16, u16))> {
        let mut reader = Reader::new(payload);
        let class = u16::read(&mut reader).map_err(|e| (e, (0, 0)))?;
        let method = u16::read(&mut reader).map_err(|e| (e, (class, 0)))?;
        let id = (class, method);
        let decoded = Self::read(id, &mut reader).map_err(|e| (e, id))?;
        reader.finish().map_err(|e| (e, id))?;
        Ok(decoded)
    }

    /// Numbers and arguments, as a method frame holds them.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (class, method) = self.id();
        out.put_u16(class);
        out.put_u16(method);
        self.write(&mut Writer::new(out));
    }
}
