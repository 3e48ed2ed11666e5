//! MQTT topic filters: syntax and matching.
