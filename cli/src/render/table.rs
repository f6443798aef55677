//! Tables for people: aligned, without borders, colour added after the widths are known. The last column is never padded, so long words go there.

use crate::out::{Out, Paint};
use crate::stop::Result;

/// Between columns.
const GAP: &str = "  ";

/// One field.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    /// With colour.
    pub fn painted(text: impl Into<String>, paint: Paint) -> Self {
        Cell { text: text.into(), paint }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: text.to_string(), paint: Paint::Plain }
    }
}

/// Rows under headings; a heading that begins with `>` is of a column of numbers.
#[derive(Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// With these headings.
    pub fn new(headings: &[&'static str]) -> Self {
        Table { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// One more row; it has as many cells as there are headings.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.headings.len());
        self.rows.push(cells);
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// No row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// As lines.
    pub fn lines(&self, out: &Out) -> Vec<String> {
        let head: Vec<Cell> = self.headings.iter().map(|h| Cell::painted(h.trim_start_matches('>'), Paint::Bold)).collect();
        let wide = |text: &str| text.chars().count();
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|i| std::iter::once(&head).chain(&self.rows).filter_map(|r| r.get(i)).map(|c| wide(&c.text)).max().unwrap_or(0))
            .collect();
        let line = |row: &Vec<Cell>| {
            let last = row.len().saturating_sub(1);
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[i].saturating_sub(wide(&cell.text)));
                let right = self.headings[i].starts_with('>');
                let text = out.paint(cell.paint, &cell.text);
                match (right, i == last) {
                    (true, _) => line.extend([pad.as_str(), &text]),
                    (false, true) => line.push_str(&text),
                    (false, false) => line.extend([text.as_str(), &pad]),
                }
                line.push_str(if i == last { "" } else { GAP });
            }
            line.trim_end().to_owned()
        };
        std::iter::once(&head).chain(&self.rows).map(line).collect()
    }

    /// On stdout.
    pub fn print(&self, out: &Out) -> Result<()> {
        self.lines(out).into_iter().try_for_each(|l| out.line(l))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Environment;

    #[test]
    fn columns_are_aligned_and_numbers_to_the_right() {
        let out = Out::new(&Environment::default(), false);
        let mut table = Table::new(&["JOB", ">TASKS", "NAME"]);
        table.row(vec!["7k2m9p".into(), 64.into(), "render".into()]);
        table.row(vec!["ab".into(), 4_096.into(), "".into()]);
        assert_eq!(vec!["JOB     TASKS  NAME", "7k2m9p     64  render", "ab       4096"], table.lines(&out));
    }

    #[test]
    fn colour_does_not_move_columns() {
        let out = Out::new(&Environment { stdout_terminal: true, ..Default::default() }, false);
        let mut table = Table::new(&["PHASE", "X"]);
        table.row(vec![Cell::painted("done", Paint::Good), "1".into()]);
        assert_eq!("\x1b[32mdone\x1b[0m   1", table.lines(&out)[1]);
    }
}
