//! The agent: observe, decide, act. One a member, beside the database server that it looks after.

pub mod command;
pub mod view;
