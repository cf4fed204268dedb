//! The agent: observe, decide, act. One a member, beside the database server that it looks after.
//!
//! `run` is the loop; `observe` builds the World, `antiphon_core` decides, `act` carries out. `assemble` puts
//! an agent together from its node file.

mod act;
pub mod assemble;
mod beats;
pub(crate) mod brief;
pub mod certificates;
pub(crate) mod clock;
pub mod command;
pub mod guard;
pub mod identity;
mod journal;
mod kept;
mod observe;
pub(crate) mod records;
pub mod routers;
mod run;
mod settings;
mod upkeep;
pub mod view;

pub use run::Agent;
