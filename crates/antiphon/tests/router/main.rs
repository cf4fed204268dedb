//! The router in front of real clusters: what passes through it, what it keeps apart, and what its clients feel
//! when their leader dies or hands over.
//!
//! Every test has members, a router process and clients of its own, on free ports of loopback.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

mod balance;
mod carries;
mod console;
mod entry;
mod failover;
mod hostile;
mod levels;
mod reads;
mod reload;
mod rules;
mod servers;
mod support;
mod tls;
