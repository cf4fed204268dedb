//! Several leaders: every one takes writes, and the changes of each are read from its log and applied by the others.
//!
//! Stock servers, no extension: changes come by logical replication (`pgoutput`) and are applied as SQL by a role
//! without more rights than that needs. What is decided (which of two writes wins, what may be forgotten) is in
//! `antiphon-core::mesh`; this crate reads, writes and keeps the tables that it takes.

pub mod announcement;
pub mod apply;
pub mod body;
pub mod crdt;
pub mod dsn;
pub mod ledger;
pub mod link;
pub mod links;
pub mod manage;
pub mod members;
pub mod metrics;
pub mod name;
pub mod net;
pub mod node;
pub mod pgoutput;
pub mod row;
pub mod session;
pub mod setup;
pub mod shape;
pub mod standing;
pub mod transaction;
pub mod verify;
pub mod wire;
