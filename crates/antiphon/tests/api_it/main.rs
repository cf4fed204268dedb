//! The HTTP API and the command line as clients meet them: a real server on a real socket, fed with views.
//!
//! A view is a value, so no agent is needed to put the API into any state. What the leader would do to the
//! store, the tests do themselves.

mod changes;
mod commands;
mod events;
mod fixture;
mod health;
mod hostile;
mod orders;
mod pages;
mod reads;
mod tls;
