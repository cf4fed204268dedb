//! How a verb's result is shown: as a table for people, or as JSON, YAML or tab-separated values.

use std::io::IsTerminal;

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::table::{Column, harmless, table};
use super::yaml;

/// How a result is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table
    #[default]
    Pretty,
    /// JSON
    Json,
    /// YAML
    #[value(alias = "yml")]
    Yaml,
    /// Tab-separated values with a line of names
    Tsv,
}

/// Rows under columns. `names` are those of machine-readable formats, where two columns must not share one.
pub(super) struct Rows<'a> {
    pub(super) title: String,
    pub(super) columns: Vec<Column>,
    pub(super) names: Vec<&'static str>,
    pub(super) rows: Vec<Vec<Value>>,
    pub(super) colour: bool,
    /// Columns that only machine-readable formats have, before the others: name and value.
    pub(super) constant: Option<(&'static str, &'a str)>,
}

/// Whether colours are welcome.
pub(super) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// The rows in a format, with a line feed at the end.
pub(super) fn show(format: Format, rows: &Rows<'_>) -> String {
    match format {
        Format::Pretty => {
            let cells: Vec<Vec<String>> =
                rows.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
            let paint = |column: &str, cell: &str, text: String| {
                if rows.colour { painted(column, cell, text) } else { text }
            };
            table(&rows.title, &rows.columns, &cells, paint)
        }
        Format::Json => objects(rows).to_string() + "\n",
        Format::Yaml => yaml::write(&objects(rows)),
        Format::Tsv => {
            let constant = rows.constant.as_ref();
            let names = constant.map(|(name, _)| *name).into_iter().chain(rows.names.iter().copied());
            let mut text = names.collect::<Vec<_>>().join("\t") + "\n";
            for row in &rows.rows {
                let first = constant.map(|(_, value)| harmless(value));
                let cells = first.into_iter().chain(row.iter().map(|value| harmless(&cell(value))));
                text.push_str(&(cells.collect::<Vec<_>>().join("\t") + "\n"));
            }
            text
        }
    }
}

/// A list of objects; empty cells are left out.
fn objects(rows: &Rows<'_>) -> Value {
    let object = |row: &Vec<Value>| {
        let mut object = Map::new();
        if let Some((name, value)) = rows.constant {
            object.insert(name.to_owned(), value.into());
        }
        for (name, value) in rows.names.iter().zip(row).filter(|(_, value)| !cell(value).is_empty()) {
            object.insert((*name).to_owned(), value.clone());
        }
        Value::Object(object)
    };
    Value::Array(rows.rows.iter().map(object).collect())
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(map) if map.is_empty() => String::new(),
        other => other.to_string(),
    }
}

fn painted(column: &str, cell: &str, text: String) -> String {
    let colour = match (column, cell) {
        ("Role", "Leader") => "1",
        ("State", "running" | "streaming") => "32",
        ("State", "unreachable" | "crashed" | "start failed" | "stopped" | "unknown") => "31",
        ("State", _) => "33",
        _ => return text,
    };
    format!("\u{1b}[{colour}m{text}\u{1b}[0m")
}
