//! What is printed at the end.

use std::fmt;

use crate::bench::figures::megabytes;

/// One line of the table.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) measured: String,
    /// The goal in words, and whether it was reached.
    pub(super) goal: Option<(String, bool)>,
    /// The most memory that one process held, in bytes.
    pub(super) peak: Option<u64>,
}

/// All rows, as Markdown.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<Row>);

impl Table {
    pub(super) fn add(&mut self, row: Row) {
        crate::bench::figures::say(&row.to_string());
        self.0.push(row);
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let goal = match &self.goal {
            None => "| | |".to_owned(),
            Some((goal, true)) => format!("| {goal} | reached |"),
            Some((goal, false)) => format!("| {goal} | **not reached** |"),
        };
        let peak = self.peak.map_or_else(String::new, megabytes);
        write!(formatter, "| {} | {} {goal} {peak} |", self.what, self.measured)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "| what | measured | goal | | peak memory |")?;
        writeln!(formatter, "|---|---|---|---|---|")?;
        self.0.iter().try_for_each(|row| writeln!(formatter, "{row}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_as_many_columns_as_the_head() {
        let row = |goal: Option<(String, bool)>| Row {
            what: "w".to_owned(),
            measured: "m".to_owned(),
            goal,
            peak: Some(1_500_000),
        };
        assert_eq!(row(None).to_string(), "| w | m | | | 1.5 MB |");
        let reached = row(Some(("g".to_owned(), true)));
        assert_eq!(reached.to_string(), "| w | m | g | reached | 1.5 MB |");
        let missed = row(Some(("g".to_owned(), false)));
        assert_eq!(missed.to_string(), "| w | m | g | **not reached** | 1.5 MB |");
    }
}
