//! High availability.
