//! Connections, statements and streams of changes.

mod connections;
mod streams;
