//! Tables for eyes: columns as wide as they need to be, readable without colour, and easy to cut.

use std::fmt::Write as _;

use super::output::Colours;

/// Two spaces between columns, so that one space may be in a cell.
const GAP: &str = "  ";

/// A line of heads and a line for each row. Numbers are best given to [`right`] columns.
pub(super) fn table(heads: &[&str], right: &[bool], rows: &[Vec<String>], colours: Colours) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heads.get(column).map(|head| head.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, cell) in cells.enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            let _infallible = match right.get(column) {
                Some(true) => write!(line, "{cell:>width$}{GAP}"),
                _ => write!(line, "{cell:width$}{GAP}"),
            };
        }
        line.trim_end().to_owned()
    };
    let mut text = colours.bold(&line(&mut heads.iter().copied()));
    text.push('\n');
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["long name".to_owned(), "1,234".to_owned()]];
        let text = table(&["NODE", "BLOBS"], &[false, true], &rows, Colours::NONE);
        assert_eq!(text, "NODE       BLOBS\na              1\nlong name  1,234\n");
    }
}
