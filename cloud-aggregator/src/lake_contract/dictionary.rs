//! The contract for people: `TABLES.md`.

use std::fmt::Write as _;

use super::{Column, Contract, Table};

/// The contract as Markdown.
#[must_use]
pub fn markdown(contract: &Contract) -> String {
    let mut text = format!(
        "# Tables of the lake\n\n\
         Version {} of the contract. `cloud-aggregator lake contract --format markdown` prints this from `contract/lake.odcs.json`; a test \
         compares.\n\n\
         Delta Lake, reader version 1, writer version 2. Every timestamp is UTC, to the microsecond. To Delta every column may be null; \
         \"never\" says that the aggregator writes no null there. New columns come without a new major version: ignore what you do not \
         know.\n",
        contract.version()
    );
    for table in &contract.schema {
        section(&mut text, table);
    }
    text
}

fn section(text: &mut String, table: &Table) {
    let Table { name, description, data_granularity_description: row, columns } = table;
    let mut line = |part: std::fmt::Arguments<'_>| {
        text.write_fmt(part).expect("a string takes all");
        text.push('\n');
    };
    line(format_args!("\n## `{name}`\n\n{description} {row}\n"));
    let mut facts = vec![format!("Partitioned by {}.", names(&table.partitions()))];
    let key = table.primary_key();
    if !key.is_empty() {
        facts.push(format!("A row is named by {}.", names(&key)));
    }
    line(format_args!("{}\n", facts.join(" ")));
    line(format_args!("| column | type | null | unit | meaning |\n|---|---|---|---|---|"));
    for column in columns {
        let Column { name, physical_type, required, .. } = column;
        let null = if *required { "never" } else { "may be" };
        let unit = column.unit().unwrap_or_default();
        line(format_args!(
            "| `{name}` | {physical_type} | {null} | {unit} | {} |",
            meaning(column)
        ));
    }
}

fn names(of: &[&str]) -> String {
    of.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn meaning(column: &Column) -> String {
    // A bar would end the cell.
    let mut meaning = column.description.replace('|', "\\|");
    if let Some(values) = column.values() {
        meaning = format!("{meaning} One of {}.", names(&values));
    }
    meaning
}
