//! Aligned tables for people.

/// A column: its head, and whether its cells stand to the right.
pub(super) struct Column {
    head: &'static str,
    right: bool,
}

/// A column of text.
pub(super) const fn text(head: &'static str) -> Column {
    Column { head, right: false }
}

/// A column of numbers.
pub(super) const fn number(head: &'static str) -> Column {
    Column { head, right: true }
}

/// Head and rows, two spaces between columns, no space at line ends. Control characters of cells
/// are left out, so that a name cannot move the cursor.
pub(super) fn render(columns: &[Column], rows: &[Vec<String>]) -> String {
    render_steady(columns, rows, &mut Vec::new())
}

/// As [`render`], for a table that is shown again and again: no column gets narrower than `least`, which
/// keeps the widths for the next time.
pub(super) fn render_steady(columns: &[Column], rows: &[Vec<String>], least: &mut Vec<usize>) -> String {
    let clean = |cell: &String| cell.chars().filter(|c| !c.is_control()).collect::<String>();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(clean).collect()).collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(column.head.len()).max(least.get(at).copied().unwrap_or(0))
        })
        .collect();
    least.clone_from(&widths);
    let mut out = String::new();
    let head: Vec<String> = columns.iter().map(|column| column.head.to_owned()).collect();
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(columns).zip(&widths) {
            let width = *width;
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(&if column.right { format!("{cell:>width$}") } else { format!("{cell:<width$}") });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A value, or `-` for one that is not known.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let rows = [("a", "7"), ("färöer", "1234"), ("evil\u{1b}[2J\n", "-")]
            .map(|(name, lag)| vec![name.to_owned(), lag.to_owned(), "x".to_owned()]);
        let table = render(&[text("NAME"), number("LAG"), text("STATE")], &rows);
        let want = ["NAME      LAG  STATE", "a           7  x", "färöer   1234  x", "evil[2J     -  x"];
        // NAME is 7 wide by its longest cell, LAG 4.
        assert_eq!(table.lines().collect::<Vec<_>>(), want);
    }

    #[test]
    fn a_table_that_is_shown_again_does_not_jump() {
        let (columns, mut widths) = ([number("LAG"), text("STATE")], Vec::new());
        let row = |lag: &str| [vec![lag.to_owned(), "up".to_owned()]];
        render_steady(&columns, &row("123456"), &mut widths);
        let now = render_steady(&columns, &row("7"), &mut widths);
        assert_eq!(now.lines().collect::<Vec<_>>(), ["   LAG  STATE", "     7  up"]);
    }
}
