//! Draws tables that fit a width.

use document_outbox::internal::{Keep, one_line};

/// The space between two columns.
const GAP: usize = 2;

/// The side to which a column's cells are aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    title: &'static str,
    align: Align,
    /// The width below which the column is not cut; `None` if it is never cut.
    least: Option<usize>,
}

impl Column {
    /// A column that is never cut.
    pub const fn whole(title: &'static str) -> Self {
        Self { title, align: Align::Left, least: None }
    }

    /// A column of numbers.
    pub const fn number(title: &'static str) -> Self {
        Self { title, align: Align::Right, least: None }
    }

    /// A column that is cut if there is no room, but not below this width.
    pub const fn cut(title: &'static str, least: usize) -> Self {
        Self { title, align: Align::Left, least: Some(least) }
    }
}

/// A table. Cells can have any text; control characters are escaped.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| one_line(&cell, Keep::Nothing).into_owned()).collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as lines of at most this width, if its columns allow that.
    pub fn draw(&self, width: usize) -> String {
        let widths = self.widths(width);
        let titles: Vec<String> = self.columns.iter().map(|column| column.title.to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((column, cell), width) in self.columns.iter().zip(row).zip(&widths) {
                if !line.is_empty() {
                    line.push_str(&" ".repeat(GAP));
                }
                let cell = shortened(cell, *width);
                let blanks = " ".repeat(width - cell.chars().count());
                match column.align {
                    Align::Left => line.extend([cell, blanks]),
                    Align::Right => line.extend([blanks, cell]),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn widths(&self, width: usize) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.title.chars().count()).collect();
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(cell.chars().count());
            }
        }

        // Take from the widest column that may be cut, until the table fits.
        let gaps = GAP * self.columns.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > width {
            let mut widest: Option<usize> = None;
            for (at, column) in self.columns.iter().enumerate() {
                let least = column.least.map(|least| least.max(column.title.chars().count()));
                let can_shrink = least.is_some_and(|least| widths[at] > least);
                if can_shrink && widest.is_none_or(|known| widths[at] > widths[known]) {
                    widest = Some(at);
                }
            }
            match widest {
                Some(at) => widths[at] -= 1,
                None => break,
            }
        }
        widths
    }
}

/// A text of at most this many characters.
pub fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// A text in lines of at most this width. Each line begins with `indent`, except the first, which begins with `first`.
pub fn wrapped(text: &str, first: &str, indent: &str, width: usize) -> String {
    let text = one_line(text, Keep::Nothing);
    let mut lines = String::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in text.split(' ') {
        let length = line.chars().count() + usize::from(!is_empty) + word.chars().count();
        if !is_empty && length > width {
            lines.push_str(line.trim_end());
            lines.push('\n');
            indent.clone_into(&mut line);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push_str(line.trim_end());
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_columns_are_cut_first() {
        let mut table = Table::new([Column::whole("ID"), Column::cut("ERROR", 6), Column::number("N")]);
        table.row(["a-long-identifier".to_owned(), "an error that is too long".to_owned(), "7".to_owned()]);
        let drawn = table.draw(40);
        assert!(drawn.lines().all(|line| line.chars().count() <= 40), "{drawn}");
        assert!(drawn.contains("a-long-identifier  an error that is …  7"), "{drawn}");
    }

    #[test]
    fn cells_cannot_move_the_cursor() {
        let mut table = Table::new([Column::cut("A", 3)]);
        table.row(["x\u{1b}[2Jy\nz".to_owned()]);
        assert_eq!(table.draw(80), "A\nx\\u{1b}[2Jy\\nz\n");
    }

    #[test]
    fn sentences_are_wrapped_between_words() {
        let text = wrapped("one two three four", "- ", "  ", 11);
        assert_eq!(text, "- one two\n  three\n  four\n");
    }
}
