//! Antiphon: one binary that makes stock database servers one replicated system.

pub mod agent;
pub mod config;
pub mod demo;
pub mod node;
pub mod api;
pub mod cli;
