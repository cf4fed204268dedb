//! Tables as patronictl prints them: a title in the top line, columns aligned, one line a member.
//!
//! Cells come from other machines: what could move the cursor of a terminal is replaced.

/// A column's name, and whether its cells stand at the right.
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) right: bool,
}

/// A column at the left.
pub(super) const fn left(name: &'static str) -> Column {
    Column { name, right: false }
}

/// A column at the right.
pub(super) const fn right(name: &'static str) -> Column {
    Column { name, right: true }
}

/// The table as text, with a line feed at the end. `paint` colours a cell of a column once it is aligned.
pub(super) fn table(
    title: &str,
    columns: &[Column],
    rows: &[Vec<String>],
    paint: impl Fn(&str, &str, String) -> String,
) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| harmless(cell)).collect()).collect();
    let width = |index: usize, column: &Column| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
        cells.chain([column.name.chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(|(index, column)| width(index, column)).collect();
    let rule: String =
        widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect::<String>() + "+";
    let mut text = titled(&rule, title);
    let aligned = |cell: &str, width: usize, right: bool| {
        if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
    };
    text.push('\n');
    for (column, width) in columns.iter().zip(&widths) {
        text.push_str(&format!("| {} ", aligned(column.name, *width, column.right)));
    }
    text.push_str(&format!("|\n{rule}\n"));
    for row in &rows {
        for ((cell, column), width) in row.iter().zip(columns).zip(&widths) {
            let shown = paint(column.name, cell, aligned(cell, *width, column.right));
            text.push_str(&format!("| {shown} "));
        }
        text.push_str("|\n");
    }
    text + &rule + "\n"
}

/// The top line with the title in it.
fn titled(rule: &str, title: &str) -> String {
    if title.is_empty() {
        return rule.to_owned();
    }
    let room = rule.chars().count().saturating_sub(2);
    let title: String = format!(" {} ", harmless(title)).chars().take(room).collect();
    let rest: String = rule.chars().skip(1 + title.chars().count()).collect();
    format!("+{title}{rest}")
}

/// A text without control characters and without those that change the direction of writing.
pub(super) fn harmless(text: &str) -> String {
    let harms = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if harms(c) { '?' } else { c }).collect()
}
