//! Text in columns, for a terminal and for a file alike.

use std::fmt::Write as _;

/// Columns of what is printed.
pub(super) const WIDTH: usize = 100;

/// What stands between two columns.
pub(super) const GAP: &str = "  ";

/// A line more.
pub(super) fn put(text: &mut String, line: &str) {
    writeln!(text, "{}", line.trim_end()).unwrap_or_default();
}

/// Lines more.
pub(super) fn put_all(text: &mut String, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        put(text, &line);
    }
}

/// Rows as lines, each column as wide as its widest cell; one gives way, shortened in its middle, so that a line has at most [`WIDTH`] columns.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]], gives_way: usize) -> Vec<String> {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let all = widths.iter().sum::<usize>() + GAP.len() * (N - 1);
    widths[gives_way] = widths[gives_way].saturating_sub(all.saturating_sub(WIDTH)).max(1);
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{:<width$}", shortened(cell, width))).collect();
        cells.join(GAP).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// A text without its middle, where it is too long: the method is at its beginning, the service at its end.
fn shortened(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let (before, after) = (width / 2, width - width / 2 - 1);
    text.chars().take(before).chain(['…']).chain(text.chars().skip(length - after)).collect()
}

/// A text without its end, where it is too long.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width { text.to_owned() } else { text.chars().take(width - 1).chain(['…']).collect() }
}

/// A text in lines of at most so many columns; a longer word has a line of its own.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= width) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_its_widest_column_gives_way() {
        let rows = [["a", "POST /orders (shop)", "c"], ["aaa", "GET /", "cc"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows, 1), ["a    POST /orders (shop)  c", "aaa  GET /                cc"]);
        let long = [["a".to_owned(), "b".repeat(200)], ["a".to_owned(), "ö".repeat(98)]];
        assert!(aligned(&long, 1).iter().all(|l| l.chars().count() <= WIDTH));
        assert_eq!(shortened("POST /orders (shop)", 10), "POST …hop)");
        assert_eq!(cut("9 h earlier", 5), "9 h …");
    }

    #[test]
    fn words_stay_whole() {
        assert_eq!(wrapped("one two  three fourteen", 9), ["one two", "three", "fourteen"]);
        assert_eq!(wrapped("", 9), Vec::<String>::new());
    }
}
