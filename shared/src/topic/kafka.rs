//! MQTT topic <-> Kafka topic name.
