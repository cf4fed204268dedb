//! Several leaders: which of two writes wins, what a conflict is, and what may be forgotten when.
//!
//! A row's winner is the greatest [`Version`] over all writes and deletes that it ever had, on every node and in
//! whatever order they arrive. Everything here follows from that one line. Nothing here knows SQL.

pub mod agreement;
pub mod conflict;
pub mod joining;
pub mod resolve;
pub mod rules;
pub mod truncation;
pub mod version;
pub mod watermark;

pub use agreement::{Choice, Content, Judgement, Sight, Sights};
pub use conflict::Conflict;
pub use resolve::{Change, Local, Verdict, resolve};
pub use rules::{Resolver, Rules};
pub use version::{CommitTime, NodeId, Version};
pub use watermark::{Completeness, Reached};
