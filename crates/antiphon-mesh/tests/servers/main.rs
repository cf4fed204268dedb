//! The crate against real servers. `ANTIPHON_TEST_BIN` names the folder of the programs to test with; without it
//! they are searched for. What must hold on every release runs on every one that is here.

mod absent;
mod apply;
mod crdt;
mod delta;
mod join;
mod leave;
mod merge;
mod mesh;
mod resolvers;
mod rights;
#[path = "../support/mod.rs"]
mod support;
mod verify;
mod wire;
