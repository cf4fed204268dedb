//! JSON values as YAML text, and YAML files as JSON values, for settings and for `--format yaml`.

use std::fmt::Write;

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

/// The value in block style, with a line feed at the end.
pub(super) fn write(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => entries(map, 0, &mut text),
        Value::Array(items) if !items.is_empty() => list(items, 0, &mut text),
        other => {
            text.push_str(&scalar(other));
            text.push('\n');
        }
    }
    text
}

fn entries(map: &Map<String, Value>, depth: usize, text: &mut String) {
    for (index, (key, value)) in map.iter().enumerate() {
        // The first line of a map in a list stands behind its dash.
        if index > 0 || !text.ends_with("- ") {
            text.push_str(&"  ".repeat(depth));
        }
        text.push_str(&word(key));
        text.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                text.push('\n');
                entries(map, depth + 1, text);
            }
            Value::Array(items) if !items.is_empty() => {
                text.push('\n');
                list(items, depth, text);
            }
            other => {
                // Writing to a String cannot fail.
                let _ = writeln!(text, " {}", scalar(other));
            }
        }
    }
}

fn list(items: &[Value], depth: usize, text: &mut String) {
    for item in items {
        text.push_str(&"  ".repeat(depth));
        text.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => entries(map, depth + 1, text),
            // Lists in lists are rare enough for the flow style.
            other => {
                let _ = writeln!(text, "{}", scalar(other));
            }
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => word(text),
        // JSON is YAML.
        other => other.to_string(),
    }
}

/// A text without quotes if it then reads back as the same text.
fn word(text: &str) -> String {
    let reserved = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "~"];
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '/'));
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '+' | ' ');
    let sound = starts && text.chars().all(plain) && !text.ends_with(' ');
    if sound && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}

/// A document of YAML or JSON. The reason if it is neither.
pub(super) fn read(text: &str) -> Result<Value, String> {
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(value);
    }
    let documents = Yaml::load_from_str(text).map_err(|error| error.to_string())?;
    match documents.as_slice() {
        [] => Ok(Value::Null),
        [document] => json(document),
        [_, ..] => Err("it has more than one document".to_owned()),
    }
}

fn json(node: &Yaml<'_>) -> Result<Value, String> {
    match node {
        Yaml::Value(Scalar::Null) => Ok(Value::Null),
        Yaml::Value(Scalar::Boolean(on)) => Ok((*on).into()),
        Yaml::Value(Scalar::Integer(number)) => Ok((*number).into()),
        Yaml::Value(Scalar::FloatingPoint(number)) => Ok(number.into_inner().into()),
        Yaml::Value(Scalar::String(text)) => Ok(text.as_ref().into()),
        Yaml::Sequence(items) => items.iter().map(json).collect::<Result<_, _>>().map(Value::Array),
        Yaml::Mapping(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let key = key.as_str().ok_or("a key is not a text")?;
                map.insert(key.to_owned(), json(value)?);
            }
            Ok(Value::Object(map))
        }
        Yaml::Representation(..) | Yaml::Tagged(..) | Yaml::Alias(_) | Yaml::BadValue => {
            Err("it has tags or values that mean nothing here".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_as_the_same_value() {
        let value = serde_json::json!({
            "ttl": 30, "on": "on", "empty": {}, "none": [], "null": null, "number": "10", "blank": " x ",
            "lines": "a\nb: c", "pg": {"hba": ["host all all 0.0.0.0/0 md5", "# x"], "f": 1.5, "t": true},
            "list": [{"a": 1, "b": {"c": 2}}, [1, 2]], "k: y": "é"
        });
        let text = write(&value);
        assert_eq!(read(&text), Ok(value), "{text}");
    }
}
