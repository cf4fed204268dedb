//! Identifiers of the users' objects, quoted. The only way by which a name gets into a statement.

use std::fmt;

/// A table's schema and name, as the catalogue has them. Displays quoted, fit for a statement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// The schema, unquoted.
    pub schema: String,
    /// The table, unquoted.
    pub name: String,
}

impl TableName {
    /// The table `name` in `schema`, both as the catalogue has them.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", Quoted(&self.schema), Quoted(&self.name))
    }
}

/// An identifier. Displays in double quotes, fit for a statement.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// A string. Displays as a literal that no setting of the server reads otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Literal<'a>(pub &'a str);

impl fmt::Display for Literal<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = self.0.replace('\'', "''");
        if quoted.contains('\\') {
            return write!(out, " E'{}'", quoted.replace('\\', "\\\\"));
        }
        write!(out, "'{quoted}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_ends_its_quotes() {
        let table = TableName::new("a\"b", "c; drop table d --");
        assert_eq!(table.to_string(), "\"a\"\"b\".\"c; drop table d --\"");
        assert_eq!(Literal("it's").to_string(), "'it''s'");
        assert_eq!(Literal("a\\'").to_string(), " E'a\\\\'''");
    }
}
