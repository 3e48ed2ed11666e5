//! The whole system under test: starts edges, clouds and clients on free ports in temporary folders.
