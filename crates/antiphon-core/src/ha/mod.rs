//! High availability: who leads, who follows whom, and what each member does about it.
//!
//! [`world::World`] goes in, a [`decide::Decision`] comes out: steps, the reason, and when to look again.

pub mod cluster;
pub mod step;
pub mod world;
