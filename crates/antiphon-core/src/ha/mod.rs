//! High availability: who leads, who follows whom, and what each member does about it.
//!
//! [`world::World`] goes in, a [`decide::Decision`] comes out: steps, the reason, and when to look again.
//! `decide` looks at where leadership stands and hands on to `lead`, `follow` or `elect`; the other modules
//! each answer one question for them.

mod bootstrap;
mod cascade;
pub mod cluster;
pub mod decide;
pub mod detector;
mod elect;
pub mod election;
mod follow;
mod lead;
mod lease;
pub mod rejoin;
pub mod role;
pub mod slots;
pub mod step;
pub mod switchover;
pub mod sync;
pub mod why;
pub mod world;
