//! TOML with the line of each key.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Table;
use toml::de::{DeTable, DeValue};

use super::keys::{KeyPath, Segment};

/// Where a text is not TOML.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// From 1.
    pub(super) line: usize,
    /// What the parser says, on one line.
    pub(super) message: String,
}

/// The lines of keys and of the tables of lists.
pub(super) type Lines = BTreeMap<KeyPath, usize>;

/// Reads a file.
pub(super) fn parse(text: &str) -> Result<(Table, Lines), SyntaxError> {
    let not_toml = |error: toml::de::Error| SyntaxError {
        line: line(text, &error.span().unwrap_or(0..0)),
        message: error.message().replace('\n', ", "),
    };
    let table: Table = text.parse().map_err(not_toml)?;
    let spanned = DeTable::parse(text).map_err(not_toml)?;
    let mut lines = Lines::new();
    note_table(text, spanned.get_ref(), &KeyPath::default(), &mut lines);
    Ok((table, lines))
}

/// The line of a path, or of the nearest one above it.
pub(super) fn line_of(lines: &Lines, path: &KeyPath) -> usize {
    let known: Vec<usize> = path.prefixes().filter_map(|prefix| lines.get(&prefix).copied()).collect();
    known.last().copied().unwrap_or(1)
}

fn note_table(text: &str, table: &DeTable<'_>, at: &KeyPath, lines: &mut Lines) {
    for (key, value) in table {
        let path = at.name(key.get_ref());
        lines.insert(path.clone(), line(text, &key.span()));
        note_value(text, value.get_ref(), &path, lines);
    }
}

fn note_value(text: &str, value: &DeValue<'_>, at: &KeyPath, lines: &mut Lines) {
    match value {
        DeValue::Table(table) => note_table(text, table, at, lines),
        DeValue::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                let path = at.join(Segment::Index(index));
                lines.insert(path.clone(), line(text, &element.span()));
                note_value(text, element.get_ref(), &path, lines);
            }
        }
        _ => {}
    }
}

fn line(text: &str, span: &Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_line() {
        let text = "[store]\ncapacity = 1\n\n[[listener]]\naddress = 1\n\n[[listener]]\n  # why\ntls = { key = 2 }\n";
        let (_, lines) = parse(text).unwrap();
        let at = |path: &str| line_of(&lines, &KeyPath::from_dotted(path));
        assert_eq!(at("store"), 1);
        assert_eq!(at("store.capacity"), 2);
        assert_eq!(at("listener.0"), 4);
        assert_eq!(at("listener.0.address"), 5);
        assert_eq!(at("listener.1"), 7);
        assert_eq!(at("listener.1.tls.key"), 9);
        assert_eq!(at("listener.1.tls.certificate"), 9);
        assert_eq!(at("nothing"), 1);
    }

    #[test]
    fn what_is_not_toml_is_told_with_its_line() {
        assert_eq!(parse("a = 1\nb = \n").unwrap_err().line, 2);
        assert_eq!(parse("a = 1\na = 2\n").unwrap_err().line, 2);
        assert!(!parse("[a\n").unwrap_err().message.contains('\n'));
    }
}
