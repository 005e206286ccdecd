//! Builds a node from its configuration and runs it until it is told to stop.
