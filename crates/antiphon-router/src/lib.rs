//! The router: one address in front of a cluster, that clients keep through a failover.
//!
//! Threads carry the traffic, each with its own listener, its own event loop and its own connections (`worker`);
//! a task knows who leads, who may log in, and cancels statements (`control`). What to do with a message is
//! decided by functions without I/O: `wire`, `sql`, `session`, `upstream`, `downstream`, `loss`, `login`, `topology`.
//!
//! It decides nothing about the cluster. It sends a session to a server only while the cluster's record names
//! that server as the leader, and repeats nothing whose outcome is unknown.

pub mod answers;
mod control;
pub mod downstream;
mod follow;
pub mod login;
pub mod loss;
pub mod out;
pub mod parameters;
pub mod scram;
pub mod session;
pub mod settings;
mod shared;
pub mod sql;
mod start;
pub mod statements;
pub mod topology;
pub mod upstream;
pub mod wire;
mod worker;

pub use settings::{AuthQuery, Authentication, Settings};
pub use start::{Router, StartError};
