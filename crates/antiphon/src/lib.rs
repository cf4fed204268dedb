//! Antiphon: one binary that makes stock database servers one replicated system.

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod demo;
mod log;
pub mod mesh;
pub mod node;
mod resources;
pub mod router;
pub mod systemd;
