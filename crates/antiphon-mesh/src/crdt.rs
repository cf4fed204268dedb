//! The column types that merge: what makes them in a database, which there are, and what merges two states.
//!
//! All of them live in the database, as SQL (`sql/crdt.sql`, which explains the states), so that every client can use
//! them. Nothing here looks into a state: an applier merges by a statement, and so under the row's lock.

/// Makes the types and functions in the schema `antiphon`, or what is missing of them. May be run again. To be sent as
/// one message or within a transaction; needs `antiphon.node_id()`, no superuser and no extension.
pub const SETUP: &str = include_str!("sql/crdt.sql");

/// A type whose states merge. A domain over jsonb.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Crdt {
    /// A counter that only grows.
    GCounter,
    /// A counter that grows and shrinks.
    PnCounter,
    /// A set that only grows.
    GSet,
    /// A set in which an add wins over a remove that did not see it.
    OrSet,
    /// A value of which the last write wins.
    LwwRegister,
    /// A value that keeps every one of the writes that did not see each other.
    MvRegister,
}

impl Crdt {
    /// Every type there is.
    pub const ALL: [Self; 6] =
        [Self::GCounter, Self::PnCounter, Self::GSet, Self::OrSet, Self::LwwRegister, Self::MvRegister];

    /// The domain's name in the schema `antiphon`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GCounter => "g_counter",
            Self::PnCounter => "pn_counter",
            Self::GSet => "g_set",
            Self::OrSet => "or_set",
            Self::LwwRegister => "lww_register",
            Self::MvRegister => "mv_register",
        }
    }

    /// The type that a column has, by the schema and name of its type as the catalogue has them.
    #[must_use]
    pub fn of_type(schema: &str, name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|crdt| schema == "antiphon" && name == crdt.name())
    }

    /// The merge of two expressions, as one. It is what both have seen, whichever comes first and however often either is
    /// merged again; NULL merged with a state is that state. A parameter may be either of them.
    #[must_use]
    pub fn merged(self, ours: &str, theirs: &str) -> String {
        let name = self.name();
        format!("antiphon.merge(({ours})::antiphon.{name}, ({theirs})::antiphon.{name})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_found_by_its_name_and_in_no_other_schema() {
        for crdt in Crdt::ALL {
            assert_eq!(Crdt::of_type("antiphon", crdt.name()), Some(crdt));
            assert_eq!(Crdt::of_type("public", crdt.name()), None);
        }
        assert_eq!(Crdt::of_type("antiphon", "counter"), None);
    }

    #[test]
    fn the_script_has_a_check_and_an_empty_state_for_every_type() {
        for crdt in Crdt::ALL {
            let name = crdt.name();
            assert!(SETUP.contains(&format!("FUNCTION antiphon.crdt_is_{name}(state jsonb)")), "{name}");
            assert!(SETUP.contains(&format!("FUNCTION antiphon.{name}() RETURNS antiphon.{name}")), "{name}");
        }
    }

    #[test]
    fn no_function_is_left_to_its_callers_search_path() {
        for function in SETUP.split("CREATE OR REPLACE FUNCTION ").skip(1) {
            let name = function.split('(').next().unwrap_or_default();
            let fixed = function.contains("SET search_path = pg_catalog, pg_temp");
            assert!(fixed || function.contains("\nRETURN ") || function.contains("SAFE RETURN "), "{name}");
        }
    }
}
