//! antiphon-peer
