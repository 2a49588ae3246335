//! Rollouts: the rows of `--input` with the results of their flows, written to `--output`.
//!
//! A line is appended as soon as its flow ends; when all flows have ended, the lines are sorted in the order
//! of the input. A line is the input's own text with keys added, so that nothing in it is reformatted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::files::{append, cannot_write_file, is_at, lock, ordinary, replace_named};
use crate::error::{Error, Result};
use crate::evaluate::verify::UNDECIDED;
use crate::flow::{InputRow, RowOrder};
use crate::json_numbers::numbers;
use crate::record::evaluation::RolloutRecord;
use crate::statistics::distribution;

const FLAG: &str = "--output";

/// The keys that are added to a row, which it may not have itself.
const RESERVED_KEYS: [&str; 8] = [
    "rollout",
    "response",
    "usage",
    "reward",
    "reward_floor",
    "extracted_answer",
    "outcome",
    "error",
];

/// What is added to a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub rollout: RowRepeat,
    /// `null` if the flow failed before it had a response.
    pub response: Option<String>,
    /// Sum over all requests of the flow.
    pub usage: Usage,
    /// `null` if the response could not be judged.
    pub reward: Option<f64>,
    /// The reward, with 0 for a response that could not be judged; `null` if no step judges.
    #[serde(default)]
    pub reward_floor: Option<f64>,
    pub extracted_answer: Option<String>,
    /// `equal`, `unequal`, `undecided`, `no_answer`, or how a program ended.
    pub outcome: Option<String>,
    /// Why the flow failed. `--resume` runs such a row again.
    pub error: Option<String>,
}

impl Rollout {
    /// `reward_floor`, which lines of earlier versions lack.
    fn floor(&self) -> Option<f64> {
        let unjudged = self.error.is_none() && self.outcome.as_deref() == Some(UNDECIDED);
        (self.reward_floor.or(self.reward)).or(unjudged.then_some(0.0))
    }
}

/// A row, and which of its repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowRepeat {
    /// From 1.
    pub row: usize,
    /// From 1.
    pub repeat: usize,
}

/// Token counts under the names of the OpenAI API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: usize,
}

/// What is done with an output that is there already.
#[derive(Debug, Clone, Copy)]
pub enum Existing<'a> {
    /// It is refused.
    Refuse,
    /// Rows whose flow ended well are kept; those of failed flows are run again.
    Resume,
    /// The same, but the failures of these flows are kept: the run that is resumed has them.
    ResumeWith(&'a BTreeSet<usize>),
}

/// The output of a run in progress.
#[derive(Debug)]
pub struct RolloutFile {
    path: PathBuf,
    file: File,
    rows: Vec<InputRow>,
    order: RowOrder,
    /// The lines written so far, by flow.
    lines: BTreeMap<usize, String>,
    record: RolloutRecord,
}

impl RolloutFile {
    /// Opens `output` for the flows of `rows`, `repeats` each. `input` names their file in errors.
    ///
    /// # Errors
    /// Exit code 2 if the file exists (unless it is resumed) or holds other rows, or if a row has a reserved
    /// key; 110 if it cannot be written.
    pub fn open(
        input: &Path,
        rows: Vec<InputRow>,
        repeats: usize,
        output: &Path,
        existing: Existing<'_>,
    ) -> Result<Self> {
        for row in &rows {
            check_keys(input, row)?;
        }
        let output = &ordinary(output, FLAG)?;
        let refused = matches!(existing, Existing::Refuse);
        if refused && fs::metadata(output).is_ok_and(|file| file.len() > 0) {
            return Err(
                Error::usage(format!("{} is there already", output.display()))
                    .hint("--resume goes on with it; otherwise name another file"),
            );
        }
        // Locked until the end of the run.
        let mut file = locked(output)?;
        let mut before = Vec::new();
        (&file)
            .read_to_end(&mut before)
            .map_err(|source| cannot_write_file(output, FLAG, source))?;
        let lines = kept(&before, &rows, repeats, output, existing)?;
        let text = join(&lines);
        if text.as_bytes() != before {
            replace_named(output, FLAG, text.as_bytes())?;
            file = locked(output)?;
        }
        let record = RolloutRecord {
            output: output.display().to_string(),
            rows: rows.len(),
            repeats,
            resumed: lines.len(),
            ..RolloutRecord::default()
        };
        Ok(Self {
            path: output.to_owned(),
            file,
            order: RowOrder::new(rows.len()),
            rows,
            lines,
            record,
        })
    }

    /// Whether the file has a line for the flow. After `open`, these are the flows that an earlier run finished
    /// without an error; then also every flow that was added, failed ones included.
    pub fn has(&self, flow: usize) -> bool {
        self.lines.contains_key(&flow)
    }

    pub fn place(&self, flow: usize) -> RowRepeat {
        RowRepeat {
            row: self.order.row(flow) + 1,
            repeat: self.order.repeat(flow) + 1,
        }
    }

    /// Appends the line of a flow.
    ///
    /// # Errors
    /// Exit code 110 if it cannot be written.
    pub fn add(&mut self, flow: usize, rollout: &Rollout) -> Result<()> {
        let failed = |source: serde_json::Error| cannot_write_file(&self.path, FLAG, source.into());
        let row = open_object(&self.rows[rollout.rollout.row - 1].text);
        let added = serde_json::to_string(rollout).map_err(failed)?;
        let is_empty = row.trim_end().ends_with('{');
        let comma = if is_empty { "" } else { "," };
        let line = format!("{row}{comma}{}\n", &added[1..]);
        append(&self.file, line.as_bytes())
            .map_err(|source| cannot_write_file(&self.path, FLAG, source))?;
        self.lines.insert(flow, line);
        Ok(())
    }

    /// Sorts the lines and sums them up, those of earlier runs included.
    ///
    /// # Errors
    /// Exit code 110 if the file cannot be written.
    pub fn finish(mut self) -> Result<RolloutRecord> {
        replace_named(&self.path, FLAG, join(&self.lines).as_bytes())?;
        let mut rewards = Vec::new();
        let mut floors = Vec::new();
        for line in self.lines.values() {
            let Some(rollout) = rollout(line) else {
                continue;
            };
            self.record.done += 1;
            self.record.failed += usize::from(rollout.error.is_some());
            let unjudged = rollout.error.is_none() && rollout.reward.is_none();
            self.record.unjudged += usize::from(unjudged);
            floors.extend(rollout.floor());
            if let Some(outcome) = rollout.outcome {
                *self.record.outcomes.entry(outcome).or_default() += 1;
            }
            rewards.extend(rollout.reward);
        }
        self.record.reward = distribution(&rewards);
        self.record.mean_reward = distribution(&floors).map(|floors| floors.mean);
        Ok(self.record)
    }
}

/// Opens or creates a file and locks it against other runs.
fn locked(path: &Path) -> Result<File> {
    loop {
        let mut options = OpenOptions::new();
        let file = (options.read(true).append(true).create(true).open(path))
            .map_err(|source| cannot_write_file(path, FLAG, source))?;
        match lock(&file) {
            // A file system without locks refuses nobody.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("another run writes {}", path.display());
                return Err(Error::usage(what).hint("wait for its end, or name another file"));
            }
        }
        if is_at(&file, path) {
            return Ok(file);
        }
    }
}

/// Refuses a row that has a reserved key.
fn check_keys(input: &Path, row: &InputRow) -> Result<()> {
    let place = || format!("{}:{}", input.display(), row.line);
    let strict = numbers(&row.text).strict;
    let keys: BTreeMap<String, IgnoredAny> = serde_json::from_str(&strict).map_err(|source| {
        Error::usage(format!("{}: not a JSON object", place())).caused_by(source)
    })?;
    match RESERVED_KEYS.iter().find(|key| keys.contains_key(**key)) {
        None => Ok(()),
        Some(key) => Err(Error::usage(format!(
            "{}: the row has a key `{key}`, which is added",
            place()
        ))
        .hint("give it another name in the input")),
    }
}

/// A JSON object without its closing brace.
fn open_object(text: &Arc<str>) -> &str {
    text.strip_suffix('}').unwrap_or(text).trim_end()
}

/// The lines of an existing output to keep, by flow: those of flows that ended well, and failures that are to
/// be kept.
fn kept(
    before: &[u8],
    rows: &[InputRow],
    repeats: usize,
    output: &Path,
    existing: Existing<'_>,
) -> Result<BTreeMap<usize, String>> {
    let keeps_failure = |flow: usize| match existing {
        Existing::Refuse | Existing::Resume => false,
        Existing::ResumeWith(failed) => failed.contains(&flow),
    };
    let order = RowOrder::new(rows.len());
    let mut lines = BTreeMap::new();
    for (number, line) in before.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            // The last write was cut off; its flow runs again.
            break;
        }
        let place = || format!("{}:{}", output.display(), number + 1);
        let text = std::str::from_utf8(line).ok();
        let rollout = text.and_then(self::rollout);
        let (Some(text), Some(rollout)) = (text, rollout) else {
            return Err(Error::usage(format!("{}: not a line of rollouts", place()))
                .hint("--output names a file that an earlier run has written"));
        };
        let RowRepeat { row, repeat } = rollout.rollout;
        let known = row.checked_sub(1).and_then(|row| rows.get(row));
        let is_ours = known.is_some_and(|row| {
            let added = text.strip_prefix(open_object(&row.text));
            let added = added.map(|added| added.strip_prefix(',').unwrap_or(added));
            added.is_some_and(|added| added.starts_with("\"rollout\":"))
        });
        if !is_ours || !(1..=repeats).contains(&repeat) {
            return Err(Error::usage(format!("{}: of another input", place())).hint(
                "--resume goes on with the rows, the --limit and the --repeats of the first run, or \
                 with more of them",
            ));
        }
        let flow = order.flow(row - 1, repeat - 1);
        if rollout.error.is_none() || keeps_failure(flow) {
            lines.entry(flow).or_insert_with(|| text.to_owned());
        }
    }
    Ok(lines)
}

/// The added keys of a line. The row's own numbers may be beyond what `serde_json` reads.
fn rollout(line: &str) -> Option<Rollout> {
    serde_json::from_str(&numbers(line).strict).ok()
}

/// The lines in the order of the input, with the repeats of a row together.
fn join(lines: &BTreeMap<usize, String>) -> String {
    let place =
        |line: &String| rollout(line).map(|rollout| (rollout.rollout.row, rollout.rollout.repeat));
    let mut sorted: Vec<&String> = lines.values().collect();
    sorted.sort_by_cached_key(|line| place(line));
    sorted.into_iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INPUT: &str = "{\"id\": \"a\", \"x\": 1.50}\n\n{ }\n{\"id\": \"c\"}";

    fn rollout(row: usize, repeat: usize, reward: Option<f64>, error: Option<&str>) -> Rollout {
        Rollout {
            rollout: RowRepeat { row, repeat },
            response: Some("said".to_owned()),
            usage: Usage::default(),
            reward,
            reward_floor: reward.or(error.is_none().then_some(0.0)),
            extracted_answer: None,
            outcome: reward.map(|_| "equal".to_owned()),
            error: error.map(str::to_owned),
        }
    }

    struct Files {
        _folder: tempfile::TempDir,
        input: PathBuf,
        output: PathBuf,
    }

    fn files() -> Files {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let input = folder.path().join("in.jsonl");
        fs::write(&input, INPUT).expect("writable");
        Files {
            output: folder.path().join("out.jsonl"),
            input,
            _folder: folder,
        }
    }

    /// The rows as the expansion has them.
    fn rows(input: &Path) -> Vec<InputRow> {
        let text = fs::read_to_string(input).expect("there");
        let lines = text.lines().zip(1..);
        let rows = lines.filter(|(text, _)| !text.trim().is_empty());
        rows.map(|(text, line)| InputRow {
            line,
            text: text.trim().into(),
        })
        .collect()
    }

    fn open(files: &Files, repeats: usize, resume: bool) -> Result<RolloutFile> {
        let existing = if resume {
            Existing::Resume
        } else {
            Existing::Refuse
        };
        open_with(files, repeats, existing)
    }

    fn open_with(files: &Files, repeats: usize, existing: Existing<'_>) -> Result<RolloutFile> {
        let rows = rows(&files.input);
        RolloutFile::open(&files.input, rows, repeats, &files.output, existing)
    }

    #[test]
    fn rows_keep_their_text_and_their_order() {
        let files = files();
        let mut file = open(&files, 2, false).expect("new");
        for flow in [5, 1, 4, 2, 6, 3] {
            let place = file.place(flow);
            let reward = (flow != 6).then_some(flow as f64);
            file.add(flow, &rollout(place.row, place.repeat, reward, None))
                .expect("writable");
        }
        let record = file.finish().expect("writable");
        assert_eq!((record.done, record.unjudged, record.failed), (6, 1, 0));
        assert_eq!(record.outcomes["equal"], 5);
        assert_eq!(record.reward.expect("five").mean, 3.0);
        // The one that could not be judged counts 0.
        assert_eq!(record.mean_reward, Some(2.5));
        let text = fs::read_to_string(&files.output).expect("written");
        let places: Vec<RowRepeat> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<Rollout>(line)
                    .expect("valid")
                    .rollout
            })
            .collect();
        let places: Vec<_> = places
            .iter()
            .map(|place| (place.row, place.repeat))
            .collect();
        assert_eq!(places, [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]);
        assert!(
            text.starts_with("{\"id\": \"a\", \"x\": 1.50,\"rollout\""),
            "{text}"
        );
        assert!(text.contains("\n{\"rollout\":{\"row\":2,"), "{text}");
    }

    #[test]
    fn resume_keeps_whole_lines_and_runs_failures_again() {
        let files = files();
        let mut file = open(&files, 1, false).expect("new");
        file.add(1, &rollout(1, 1, Some(1.0), None))
            .expect("writable");
        file.add(2, &rollout(2, 1, None, Some("no")))
            .expect("writable");
        drop(file);
        let whole = fs::read(&files.output).expect("written");
        // Wherever the last line is cut off, the one before it stays.
        let first = whole
            .iter()
            .position(|byte| *byte == b'\n')
            .expect("two lines")
            + 1;
        for end in first..whole.len() {
            fs::write(&files.output, &whole[..end]).expect("writable");
            let file = open(&files, 1, true).expect("ours");
            assert!(file.has(1) && !file.has(2) && !file.has(3));
            assert_eq!(fs::read(&files.output).expect("written"), &whole[..first]);
        }
        fs::write(&files.output, &whole).expect("writable");
        let failed = BTreeSet::from([2]);
        let with_failures = open_with(&files, 1, Existing::ResumeWith(&failed));
        assert!(with_failures.expect("ours").has(2));
        assert!(!open(&files, 1, true).expect("ours").has(2));
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let files = files();
        let refusal = |resume| open(&files, 1, resume).expect_err("refused").report();
        fs::write(&files.output, "{\"id\": \"a\"}\n").expect("writable");
        assert!(refusal(false).contains("is there already"));
        assert!(refusal(true).contains("out.jsonl:1: not a line of rollouts"));
        let line = serde_json::to_string(&rollout(1, 1, None, None)).expect("valid");
        fs::write(&files.output, line + "\n").expect("writable");
        assert!(refusal(true).contains("out.jsonl:1: of another input"));
        fs::remove_file(&files.output).expect("there");
        fs::write(&files.input, "{\"reward\": 1}\n{}\n{}").expect("writable");
        assert!(refusal(false).contains("the row has a key `reward`"));
    }

    #[test]
    fn a_row_that_is_a_prefix_of_another_differs_from_it() {
        let files = files();
        let mut file = open(&files, 1, false).expect("new");
        file.add(3, &rollout(3, 1, Some(1.0), None))
            .expect("writable");
        drop(file);
        let longer = INPUT.replace("{\"id\": \"c\"}", "{\"id\": \"c\", \"z\": 1}");
        for input in [longer.as_str(), "{\"id\": \"a\"}\n{}\n{}"] {
            fs::write(&files.input, input).expect("writable");
            let refusal = open(&files, 1, true).expect_err("another input");
            assert!(refusal.report().contains("of another input"), "{input}");
        }
    }

    #[test]
    fn only_regular_files_are_replaced_and_keep_links_and_permissions() {
        use std::os::unix::fs::PermissionsExt;
        let files = files();
        let folder = files.input.parent().expect("a folder").to_owned();
        let open = |output: &Path| {
            let rows = rows(&files.input);
            RolloutFile::open(&files.input, rows, 1, output, Existing::Resume)
        };
        assert!(
            open(&folder)
                .expect_err("a folder")
                .report()
                .contains("no ordinary file")
        );
        assert!(
            open(Path::new("/dev/null"))
                .expect_err("a device")
                .report()
                .contains("hint: ")
        );

        let real = folder.join("real.jsonl");
        fs::write(&real, "").expect("writable");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o600)).expect("ours");
        std::os::unix::fs::symlink(&real, &files.output).expect("a link");
        let mut file = open(&files.output).expect("a file behind it");
        file.add(1, &rollout(1, 1, None, None)).expect("writable");
        file.finish().expect("writable");
        assert!(
            fs::symlink_metadata(&files.output)
                .expect("there")
                .is_symlink()
        );
        let metadata = fs::metadata(&real).expect("there");
        assert!(metadata.len() > 0);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn two_runs_do_not_share_a_file() {
        let files = files();
        let _first = open(&files, 1, false).expect("new");
        let second = open(&files, 1, true).expect_err("taken");
        assert!(second.report().contains("another run writes"));
    }
}
