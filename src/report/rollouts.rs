//! Rollouts: a file of rows goes in, and comes out with what came of each.
//!
//! A line is added as soon as its flow has ended; when all have, the file is put in the order of the
//! input. A line is the input's own text with further keys, so that nothing in it changes on the way.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::folder::{append, cannot_write_file, ordinary, replace_named};
use crate::error::{Error, Result};
use crate::evaluate::verify::UNDECIDED;
use crate::json_numbers::numbers;
use crate::record::evaluation::RolloutRecord;
use crate::statistics::distribution;
use crate::text_file::{line_without_mark, read_text};

/// The flag that names the file.
const FLAG: &str = "--output";

/// The keys that are added to a row.
const KEYS: [&str; 8] = [
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
    /// Which row and which of its repeats.
    pub rollout: Place,
    /// The response; `null` where the flow failed before there was one.
    pub response: Option<String>,
    /// Tokens of all of the flow's requests.
    pub usage: Usage,
    /// The reward; `null` where it could not be judged.
    pub reward: Option<f64>,
    /// The reward in which an answer that could not be judged counts 0; `null` where nothing judges.
    #[serde(default)]
    pub reward_floor: Option<f64>,
    /// The answer that was taken from the response.
    pub extracted_answer: Option<String>,
    /// What it was found to be: `equal`, `unequal`, `undecided`, `no_answer`, or how a program ended.
    pub outcome: Option<String>,
    /// Why the flow failed; such a row is run again by `--resume`.
    pub error: Option<String>,
}

impl Rollout {
    /// The reward with 0 for what was not judged, also of a line that an earlier version wrote.
    fn floor(&self) -> Option<f64> {
        let unjudged = self.error.is_none() && self.outcome.as_deref() == Some(UNDECIDED);
        (self.reward_floor.or(self.reward)).or(unjudged.then_some(0.0))
    }
}

/// Which row, and which of its repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Number of the row, from 1.
    pub row: usize,
    /// Number of the repeat, from 1.
    pub repeat: usize,
}

/// Tokens of a flow's requests, by the names of the OpenAI API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Generated tokens.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Prompt tokens that came from the prefix cache.
    pub cached_tokens: usize,
}

/// An output file that grows.
#[derive(Debug)]
pub struct RolloutFile {
    path: PathBuf,
    file: File,
    /// The rows as they were written, without the closing brace.
    rows: Vec<String>,
    repeats: usize,
    /// The lines that are there, by the number of their flow.
    lines: BTreeMap<usize, String>,
    record: RolloutRecord,
}

impl RolloutFile {
    /// Opens `output` for the rows of `input`, the first `limit` of them, which have come to `num_flows`
    /// flows.
    ///
    /// # Errors
    /// Exit code 2 where the file is there already (unless `resume`), holds something else, or a row has
    /// one of the keys that are added; 110 where it cannot be written.
    pub fn open(
        (input, limit, num_flows): (&Path, Option<usize>, usize),
        output: &Path,
        repeats: usize,
        resume: bool,
    ) -> Result<Self> {
        let rows = rows(input, limit)?;
        if rows.is_empty() || rows.len() * repeats != num_flows {
            let what = format!(
                "{} is not what it was when the flows were made",
                input.display()
            );
            return Err(Error::usage(what)
                .hint("--input names a file that does not change, and that can be read twice"));
        }
        let output = &ordinary(output, FLAG)?;
        if !resume && fs::metadata(output).is_ok_and(|file| file.len() > 0) {
            return Err(
                Error::usage(format!("{} is there already", output.display()))
                    .hint("--resume goes on with it; otherwise name another file"),
            );
        }
        // From here to the end nobody else may write it.
        let mut file = locked(output)?;
        let mut existing = Vec::new();
        (&file)
            .read_to_end(&mut existing)
            .map_err(|source| cannot_write_file(output, FLAG, source))?;
        let lines = kept(&existing, &rows, repeats, output)?;
        let text = join(&lines);
        if text.as_bytes() != existing {
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
            rows,
            repeats,
            lines,
            record,
        })
    }

    /// How many flows there are in all.
    pub fn num_flows(&self) -> usize {
        self.rows.len() * self.repeats
    }

    /// Whether the line of a flow is there.
    pub fn has(&self, flow: usize) -> bool {
        self.lines.contains_key(&flow)
    }

    /// Where a flow's line comes from.
    pub fn place(&self, flow: usize) -> Place {
        Place {
            row: (flow - 1) % self.rows.len() + 1,
            repeat: (flow - 1) / self.rows.len() + 1,
        }
    }

    /// Adds the line of a flow.
    ///
    /// # Errors
    /// Exit code 110 where it cannot be written.
    pub fn add(&mut self, flow: usize, rollout: &Rollout) -> Result<()> {
        let failed = |source: serde_json::Error| cannot_write_file(&self.path, FLAG, source.into());
        let row = &self.rows[rollout.rollout.row - 1];
        let added = serde_json::to_string(rollout).map_err(failed)?;
        // Of `{` alone, nothing has to be parted from what follows.
        let comma = if row.trim_end().ends_with('{') {
            ""
        } else {
            ","
        };
        let line = format!("{row}{comma}{}\n", &added[1..]);
        append(&self.file, line.as_bytes())
            .map_err(|source| cannot_write_file(&self.path, FLAG, source))?;
        self.lines.insert(flow, line);
        Ok(())
    }

    /// Puts the lines in order, and says what all of them came to, those of former runs included.
    ///
    /// # Errors
    /// Exit code 110 where the file cannot be written.
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

/// Opens a file, or makes it, and keeps other runs from writing it.
fn locked(path: &Path) -> Result<File> {
    loop {
        let mut options = OpenOptions::new();
        let file = (options.read(true).append(true).create(true).open(path))
            .map_err(|source| cannot_write_file(path, FLAG, source))?;
        if file.try_lock().is_err() {
            let what = format!("another run writes {}", path.display());
            return Err(Error::usage(what).hint("wait for its end, or name another file"));
        }
        // A run that has just ended may have put another file in its place.
        let inode = |metadata: std::io::Result<fs::Metadata>| metadata.map(|file| file.ino()).ok();
        if inode(file.metadata()) == inode(fs::metadata(path)) {
            return Ok(file);
        }
    }
}

/// The rows of an input, each without its closing brace.
fn rows(input: &Path, limit: Option<usize>) -> Result<Vec<String>> {
    let text = read_text(input).map_err(|source| {
        Error::usage(format!("failed to read {}", input.display())).caused_by(source)
    })?;
    let lines = text
        .lines()
        .map(line_without_mark)
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let rows = lines
        .take(limit.unwrap_or(usize::MAX))
        .map(|(number, line)| {
            let place = format!("{}:{}", input.display(), number + 1);
            let strict = numbers(line).strict;
            let row: BTreeMap<String, IgnoredAny> =
                serde_json::from_str(&strict).map_err(|source| {
                    Error::usage(format!("{place}: not a JSON object")).caused_by(source)
                })?;
            if let Some(key) = KEYS.iter().find(|key| row.contains_key(**key)) {
                return Err(Error::usage(format!(
                    "{place}: the row has a key `{key}`, which is added"
                ))
                .hint("give it another name in the input"));
            }
            let line = line.trim();
            Ok(line[..line.len() - 1].trim_end().to_owned())
        });
    rows.collect()
}

/// The lines of an output that are kept, by flow: whole ones of flows that ended well.
fn kept(
    existing: &[u8],
    rows: &[String],
    repeats: usize,
    output: &Path,
) -> Result<BTreeMap<usize, String>> {
    let mut lines = BTreeMap::new();
    for (number, line) in existing.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            // The last write was cut off: its flow is run again.
            break;
        }
        let place = || format!("{}:{}", output.display(), number + 1);
        let text = std::str::from_utf8(line).ok();
        let rollout = text.and_then(self::rollout);
        let (Some(text), Some(rollout)) = (text, rollout) else {
            return Err(Error::usage(format!("{}: not a line of rollouts", place()))
                .hint("--output names a file that an earlier run has written"));
        };
        let Place { row, repeat } = rollout.rollout;
        let known = row.checked_sub(1).and_then(|row| rows.get(row));
        let is_ours = known.is_some_and(|row| {
            let added = text.strip_prefix(row.as_str());
            let added = added.map(|added| added.strip_prefix(',').unwrap_or(added));
            added.is_some_and(|added| added.starts_with("\"rollout\":"))
        });
        if !is_ours || !(1..=repeats).contains(&repeat) {
            return Err(Error::usage(format!("{}: of another input", place())).hint(
                "--resume goes on with the rows, the --limit and the --repeats of the first run, or \
                 with more of them",
            ));
        }
        if rollout.error.is_none() {
            let flow = (repeat - 1) * rows.len() + row;
            lines.entry(flow).or_insert_with(|| text.to_owned());
        }
    }
    Ok(lines)
}

/// What was added to a row; the row's own numbers may be none that `serde_json` reads.
fn rollout(line: &str) -> Option<Rollout> {
    serde_json::from_str(&numbers(line).strict).ok()
}

/// The lines in the order of the input, the repeats of a row together.
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
            rollout: Place { row, repeat },
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

    fn open(files: &Files, repeats: usize, resume: bool) -> Result<RolloutFile> {
        RolloutFile::open(
            (&files.input, None, 3 * repeats),
            &files.output,
            repeats,
            resume,
        )
    }

    #[test]
    fn rows_come_back_as_they_were_and_in_their_order() {
        let files = files();
        let mut file = open(&files, 2, false).expect("new");
        assert_eq!(file.num_flows(), 6);
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
        let places: Vec<Place> = text
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
    fn resuming_keeps_what_is_whole_and_runs_failures_again() {
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
        assert!(!open(&files, 1, true).expect("ours").has(2));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
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
    fn a_row_that_only_begins_like_another_is_another() {
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
    fn only_ordinary_files_are_replaced_and_they_stay_what_they_are() {
        use std::os::unix::fs::PermissionsExt;
        let files = files();
        let folder = files.input.parent().expect("a folder").to_owned();
        let open = |output: &Path| RolloutFile::open((&files.input, None, 3), output, 1, true);
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
    fn an_input_that_changes_meanwhile_is_refused() {
        let files = files();
        let open =
            |num_flows| RolloutFile::open((&files.input, None, num_flows), &files.output, 1, false);
        assert!(
            open(4)
                .expect_err("three rows")
                .report()
                .contains("not what it was")
        );
        fs::write(&files.input, "").expect("writable");
        assert!(
            open(0)
                .expect_err("none")
                .report()
                .contains("not what it was")
        );
        assert!(!files.output.exists());
    }

    #[test]
    fn two_runs_do_not_share_a_file() {
        let files = files();
        let _first = open(&files, 1, false).expect("new");
        let second = open(&files, 1, true).expect_err("taken");
        assert!(second.report().contains("another run writes"));
    }
}
