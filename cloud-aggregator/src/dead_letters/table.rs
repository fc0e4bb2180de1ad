//! Tables for people.

use std::io::{self, Write};

/// Prints rows of cells, the first of them the headings, in columns as wide as their widest cell. Columns of nothing but numbers stand to
/// the right.
///
/// # Errors
/// Nobody takes the output.
pub fn print_table(rows: &[Vec<String>], out: &mut impl Write) -> io::Result<()> {
    let columns = rows.first().map_or(0, Vec::len);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let width = |column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let is_number = |cell: &String| !cell.is_empty() && cell.chars().all(|c| c.is_ascii_digit());
    let numbers: Vec<bool> =
        (0..columns).map(|column| rows.len() > 1 && cells(column).skip(1).all(is_number)).collect();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), is_number) in row.iter().zip(&widths).zip(&numbers) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line += &if *is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["count", "reason"], ["7", "json"], ["1204", "too-large"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        let mut out = Vec::new();
        print_table(&rows, &mut out).expect("written");
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text, "count  reason\n    7  json\n 1204  too-large\n");
    }
}
