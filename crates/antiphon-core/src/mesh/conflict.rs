//! The kinds of conflict, by the names that PostgreSQL 18 gives them where it has one.

use std::fmt;

/// How a change from elsewhere met something that its writer had not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conflict {
    /// A row with that key was inserted here as well.
    InsertExists,
    /// The row to be updated was written by somebody else meanwhile.
    UpdateOriginDiffers,
    /// The row to be updated is not here, and nobody remembers a delete.
    UpdateMissing,
    /// The row to be updated was deleted meanwhile.
    UpdateDeleted,
    /// The row to be deleted was written by somebody else meanwhile.
    DeleteOriginDiffers,
    /// The row to be deleted is not here.
    DeleteMissing,
    /// A unique key besides the primary key holds the value already, in another row.
    MultipleUniqueConflicts,
}

impl Conflict {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::InsertExists,
        Self::UpdateOriginDiffers,
        Self::UpdateMissing,
        Self::UpdateDeleted,
        Self::DeleteOriginDiffers,
        Self::DeleteMissing,
        Self::MultipleUniqueConflicts,
    ];

    /// Its name in tables, metrics and settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::UpdateMissing => "update_missing",
            Self::UpdateDeleted => "update_deleted",
            Self::DeleteOriginDiffers => "delete_origin_differs",
            Self::DeleteMissing => "delete_missing",
            Self::MultipleUniqueConflicts => "multiple_unique_conflicts",
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}
