//! The brain of Antiphon: domain types and every decision.
//!
//! Pure. There is no I/O, no clock, no randomness and no thread here; `clippy.toml` bans them. Time enters
//! as a field of the input and effects leave as values, so that the same code runs in the binary, in the
//! simulation and in a test that enumerates every small world.

pub mod ha;
pub mod id;
pub mod lsn;
pub mod mesh;
pub mod settings;
pub mod time;

pub use id::{Epoch, NodeName, Timeline};
pub use lsn::Lsn;
pub use time::Instant;
