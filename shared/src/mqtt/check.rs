//! What is legal in a packet beyond its shape: topics, strings, property sets.
