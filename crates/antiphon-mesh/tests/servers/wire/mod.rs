//! Connections, statements and streams of changes.

mod connections;
mod logins;
mod streams;
