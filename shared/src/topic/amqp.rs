//! MQTT topic <-> AMQP routing key and binding pattern.
