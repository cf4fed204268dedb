//! antiphon-engine
