//! The engine against real PostgreSQL servers. Each test is a promise that it keeps.
//!
//! `ANTIPHON_TEST_BIN` names the folder of the programs to test with; without it they are searched for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod lifecycle;
mod refusals;
mod replication;
mod support;
mod tls;
