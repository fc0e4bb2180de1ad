//! The runbook as text: blocks of commands by the word that says where they run, tables of alerts, words in backticks.
//!
//! A block without such a word, or with one that is not known here, is an error, so that no command escapes by being written otherwise.

use anyhow::{Context as _, ensure};

/// Where the commands of a block run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Beside both programs.
    Beside,
    /// With both programs ended.
    Stopped,
    /// Nowhere: it says what the names in other blocks stand for.
    Values,
    /// Messages to the broker.
    Mqtt,
    /// Not here: root and systemd, a cluster, Azure, a container engine, a checkout that is built.
    Elsewhere,
}

impl Place {
    fn parse(tag: &str) -> Option<Self> {
        match tag {
            "sh" => Some(Self::Beside),
            "sh stopped" => Some(Self::Stopped),
            "sh values" => Some(Self::Values),
            "sh mqtt" => Some(Self::Mqtt),
            "sh box" | "sh cluster" | "sh azure" | "sh containers" | "sh checkout" => {
                Some(Self::Elsewhere)
            }
            _ => None,
        }
    }
}

/// Commands that stand together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Line of its fence, from 1.
    pub(super) line: usize,
    pub(super) place: Place,
    pub(super) text: String,
}

impl Block {
    /// What it ends with: 0, or N where a comment says `# exit N`.
    pub(super) fn exit_code(&self) -> anyhow::Result<i32> {
        let mut codes = self.text.split("# exit ").skip(1).map(|rest| {
            let code = rest.split_whitespace().next().unwrap_or_default();
            code.parse::<i32>().with_context(|| format!("line {}: exit {code:?}", self.line))
        });
        let code = codes.next().transpose()?.unwrap_or_default();
        ensure!(codes.next().is_none(), "line {}: two exit codes", self.line);
        Ok(code)
    }
}

/// One row of a table of alerts: its name, and the command that says where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) command: String,
}

/// The whole text, taken apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Document {
    pub(super) blocks: Vec<Block>,
    /// Lines outside of blocks, with their numbers.
    prose: Vec<(usize, String)>,
}

impl Document {
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut document = Self::default();
        let mut open: Option<Block> = None;
        for (line, content) in (1..).zip(text.lines()) {
            if let Some(tag) = content.trim_start().strip_prefix("```") {
                ensure!(content.starts_with('`'), "line {line}: an indented block");
                if let Some(block) = open.take() {
                    ensure!(tag.is_empty(), "line {line}: a block begins within another one");
                    document.blocks.push(block);
                } else {
                    let place = Place::parse(tag)
                        .with_context(|| format!("line {line}: {tag:?} says no place"))?;
                    open = Some(Block { line, place, text: String::new() });
                }
            } else if let Some(block) = &mut open {
                block.text.push_str(content);
                block.text.push('\n');
            } else {
                let is_code = ["    ", "\t", "~~~"].iter().any(|mark| content.starts_with(mark));
                ensure!(!is_code, "line {line}: commands without a word that says where they run");
                let is_whole = content.matches('`').count() % 2 == 0;
                ensure!(is_whole, "line {line}: a word in backticks does not end on its line");
                document.prose.push((line, content.to_owned()));
            }
        }
        ensure!(open.is_none(), "the last block does not end");
        Ok(document)
    }

    /// Words in backticks outside of blocks, with their lines.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        self.prose
            .iter()
            .flat_map(|(line, text)| text.split('`').skip(1).step_by(2).map(|word| (*line, word)))
    }

    /// Where links lead that name no other host.
    pub(super) fn links(&self) -> impl Iterator<Item = (usize, &str)> {
        let targets = self.prose.iter().flat_map(|(line, text)| {
            let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            links.map(|target| (*line, target))
        });
        targets.filter(|(_, target)| !target.contains("://"))
    }

    /// Cells of the tables whose first column is called so, with their lines, without the header.
    pub(super) fn tables(&self, first_column: &str) -> Vec<(usize, Vec<String>)> {
        let mut rows = Vec::new();
        let mut is_inside = false;
        for (line, text) in &self.prose {
            let Some(cells) = cells(text) else {
                is_inside = false;
                continue;
            };
            let first = cells.first().map_or("", String::as_str);
            if !is_inside {
                is_inside = first == first_column;
            } else if !first.starts_with("--") {
                rows.push((*line, cells));
            }
        }
        rows
    }

    /// Rows of those tables that have a name in the first column and a command in the third.
    pub(super) fn rows(&self, first_column: &str) -> anyhow::Result<Vec<Row>> {
        let rows = self.tables(first_column).into_iter().map(|(line, cells)| {
            let column = |index: usize| {
                let cell = cells.get(index).map_or("", String::as_str);
                let inner = cell.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
                inner
                    .filter(|inner| !inner.is_empty() && !inner.contains('`'))
                    .with_context(|| format!("line {line}: {cell:?} is no word in backticks"))
            };
            Ok(Row { line, name: column(0)?.to_owned(), command: column(2)?.to_owned() })
        });
        rows.collect()
    }
}

/// Cells of a row; `\|` is no end of one.
fn cells(line: &str) -> Option<Vec<String>> {
    const ESCAPED: &str = "\u{1}";
    let line = line.replace("\\|", ESCAPED);
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(|cell| cell.trim().replace(ESCAPED, "|")).collect())
}

#[test]
fn commands_that_do_not_say_where_they_run_are_refused() {
    let refused = [
        ("```\nrm x\n```\n", "says no place"),
        ("```bash\nrm x\n```\n", "says no place"),
        ("```sh somewhere\nrm x\n```\n", "says no place"),
        ("  ```sh\n  rm x\n  ```\n", "an indented block"),
        ("    rm x\n", "without a word"),
        ("~~~sh\nrm x\n~~~\n", "without a word"),
        ("```sh\nrm x\n", "does not end"),
        ("```sh\nrm x\n```sh\n", "within another one"),
        ("say `rm\nx`\n", "does not end on its line"),
    ];
    for (text, expected) in refused {
        let error = Document::parse(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn blocks_have_their_places_lines_and_exit_codes() -> anyhow::Result<()> {
    let text = "a\n```sh\ntrue\n```\n```sh stopped\nfalse # exit 1\n```\n```sh azure\naz\n```\n";
    let document = Document::parse(text)?;
    let found: Vec<_> = document.blocks.iter().map(|block| (block.line, block.place)).collect();
    assert_eq!(found, [(2, Place::Beside), (5, Place::Stopped), (8, Place::Elsewhere)]);
    assert_eq!(document.blocks[0].exit_code()?, 0);
    assert_eq!(document.blocks[1].exit_code()?, 1);
    let text = "false # exit 1\nfalse # exit 2\n".to_owned();
    assert!(Block { line: 1, place: Place::Beside, text }.exit_code().is_err());
    Ok(())
}

#[test]
fn a_row_has_a_name_and_one_command() -> anyhow::Result<()> {
    let head = "| alert | means | look |\n|---|---|---|\n";
    let table = format!("{head}| `A` | x | `b \\| c` |\n\n| other | x |\n|---|---|\n| `D` | x |\n");
    let rows = Document::parse(&table)?.rows("alert")?;
    assert_eq!(rows, [Row { line: 3, name: "A".to_owned(), command: "b | c".to_owned() }]);
    for row in ["| A | x | `b` |\n", "| `A` | x | look |\n", "| `A` | x |\n"] {
        assert!(Document::parse(&format!("{head}{row}"))?.rows("alert").is_err(), "{row}");
    }
    Ok(())
}
