//! The router: one address in front of a cluster, that clients keep through a failover.
//!
//! Threads carry the traffic, each with its own listener, its own event loop and its own connections (`worker`);
//! a task knows who leads, who may log in, and cancels statements (`control`). What to do with a message is
//! decided by functions without I/O: `wire`, `sql`, `session`, `upstream`, `downstream`, `loss`, `login`, `topology`;
//! whether it may go to a follower by `route`, `judge` and `positions`; `console` shows and steers it all.
//!
//! It decides nothing about the cluster. It lets a session write only where the cluster's record names the leader,
//! and read only there or where the leader's history is followed; it repeats nothing whose outcome is unknown.

pub mod answers;
pub mod balance;
mod catalogues;
pub mod consistency;
pub mod console;
mod control;
mod dial;
pub mod downstream;
mod feed;
mod follow;
pub mod gates;
pub mod judge;
pub mod login;
pub mod loss;
pub mod metrics;
pub mod orders;
pub mod out;
pub mod own;
mod pace;
pub mod parameters;
pub mod plain;
pub mod positions;
mod reload;
mod rest;
pub mod route;
pub mod routes;
pub mod rules;
pub mod scram;
pub mod secrets;
mod servers;
pub mod session;
pub mod settings;
mod shared;
pub mod sql;
mod start;
pub mod statements;
pub mod stats;
pub mod topology;
pub mod upstream;
pub mod wire;
mod worker;

pub use positions::Consistency;
pub use settings::{
    Account, AuthQuery, Authentication, ClientsTls, Console, Encryption, PoolMode, Reads, Secrets, Servers,
    ServersTls, Settings, Source, Wants,
};
pub use start::{Handle, Router, StartError};
