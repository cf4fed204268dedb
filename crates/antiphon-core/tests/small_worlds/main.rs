//! Small worlds: every combination of the few things that matter, against every law. No randomness.
//!
//! Where scenarios show how a cluster goes through a fault, this shows that no corner of a decision breaks a
//! law, because all corners are visited. A failure prints the world that broke it. Whole clusters over time
//! belong to the simulation.

mod decide;
mod detector;
mod election;
mod exhaust;
mod sync;
mod world;
