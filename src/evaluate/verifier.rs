//! Checks many answers. [`super::verify`] decides what it can at once; its questions go to math-verify, a
//! Python library, in a sandboxed process. No question is asked twice.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::verify::{Finding, Verdict, examine};
use super::{EvaluationId, Finished, Outcome, Pool, Request, Settings, Times};
use crate::error::{Error, Result};
use crate::hash::PartsHasher;

/// The Python program that calls the library.
const CHECK: &str = include_str!("math_check.py");

const MODULE: &str = "math_verify";

/// Default time limit of the library per answer.
const DEADLINE: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Library {
    Unused,
    /// Used if installed. Without it answers stay undecided, each with the reason.
    IfInstalled,
    /// Required: without it [`Verifier::start`] fails.
    Needed,
}

#[derive(Debug, Clone)]
pub struct VerifierSettings {
    /// The Python that may have the library, with its environment and sandbox. The verifier itself chooses
    /// the preloaded modules and the number of processes.
    pub python: Settings,
    pub library: Library,
    /// Time limit of the library per answer. On some answers it would never finish.
    pub deadline: Duration,
}

impl VerifierSettings {
    /// Uses the library if installed, for at most 8 s per answer.
    pub fn new(python: Settings) -> Self {
        Self {
            python,
            library: Library::IfInstalled,
            deadline: DEADLINE,
        }
    }
}

/// Identifies a verification from its submission to its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerificationId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// This process: exact arithmetic, and words and lists compared element by element.
    Numerals,
    MathVerify,
    /// None: the verdict is `Undecided`.
    Nobody,
}

/// The result of a verification.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    pub id: VerificationId,
    pub verdict: Verdict,
    pub by: DecidedBy,
    /// Why the verdict is `Undecided`, or why an unparsed text is wrong; empty otherwise.
    pub reason: String,
    /// The same question had been submitted before, and was answered or still in flight.
    pub cached: bool,
    /// Times of the library's process; zero if this verification did not use it.
    pub times: Times,
}

/// How the verifications so far were answered; each counts in exactly one field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Decided without the library.
    pub in_process: u64,
    /// Decided by the library, with one process each.
    pub by_library: u64,
    /// Found in the cache, or joined to the same question in flight.
    pub hits: u64,
}

/// Decides whether answers are right and caches the verdicts. Only [`Self::verify`] blocks.
#[derive(Debug)]
pub struct Verifier {
    library: std::result::Result<Pool, String>,
    deadline: Duration,
    known: HashMap<String, Answered>,
    asked: HashMap<EvaluationId, Asked>,
    by_key: HashMap<String, EvaluationId>,
    ready: VecDeque<Verified>,
    submitted: u64,
    counts: Counts,
}

#[derive(Debug, Clone)]
struct Answered {
    verdict: Verdict,
    by: DecidedBy,
    reason: String,
}

/// A question in flight to the library, and everyone waiting for it.
#[derive(Debug)]
struct Asked {
    key: String,
    first: VerificationId,
    joined: Vec<VerificationId>,
}

impl Default for Verifier {
    /// Without the library.
    fn default() -> Self {
        Self::with(Err("math-verify is not used".to_owned()))
    }
}

impl Verifier {
    /// Starts the library's process, if the library is used. Call it before loading a model, like
    /// [`Pool::start`]; loading the library takes about a second.
    ///
    /// # Errors
    ///
    /// Preflight errors with a hint, if the library is needed and unavailable.
    pub fn start(settings: VerifierSettings) -> Result<Self> {
        let library = match settings.library {
            Library::Unused => return Ok(Self::default()),
            Library::IfInstalled => with_library(settings.python).map_err(|error| error.chain()),
            Library::Needed => Ok(with_library(settings.python)?),
        };
        Ok(Self {
            deadline: settings.deadline,
            ..Self::with(library)
        })
    }

    fn with(library: std::result::Result<Pool, String>) -> Self {
        Self {
            library,
            deadline: DEADLINE,
            known: HashMap::new(),
            asked: HashMap::new(),
            by_key: HashMap::new(),
            ready: VecDeque::new(),
            submitted: 0,
            counts: Counts::default(),
        }
    }

    /// Submits the question whether `answer` means the same as `expected`. Results come from the next polls,
    /// even if they are known at once. Ids increase in the order of submission.
    ///
    /// The cache key is the content of all three texts, so that answers to different questions are never
    /// mixed up.
    pub fn submit(&mut self, question: &str, answer: &str, expected: &str) -> VerificationId {
        let id = VerificationId(self.submitted);
        self.submitted += 1;
        let key = key(question, answer, expected);
        if let Some(known) = self.known.get(&key) {
            self.counts.hits += 1;
            let known = known.clone();
            self.ready
                .push_back(known.verified(id, true, Times::default()));
            return id;
        }
        let in_flight = self.by_key.get(&key).and_then(|id| self.asked.get_mut(id));
        if let Some(asked) = in_flight {
            self.counts.hits += 1;
            asked.joined.push(id);
            return id;
        }
        match self.decide_or_ask(answer, expected) {
            Ok(evaluation) => {
                self.counts.by_library += 1;
                self.by_key.insert(key.clone(), evaluation);
                let (first, joined) = (id, Vec::new());
                self.asked.insert(evaluation, Asked { key, first, joined });
            }
            Err(answered) => {
                self.counts.in_process += 1;
                self.known.insert(key, answered.clone());
                let verified = answered.verified(id, false, Times::default());
                self.ready.push_back(verified);
            }
        }
        id
    }

    /// Submits to the library (`Ok`), or decides here (`Err`).
    fn decide_or_ask(
        &mut self,
        answer: &str,
        expected: &str,
    ) -> std::result::Result<EvaluationId, Answered> {
        let question = match examine(answer, expected) {
            Finding::Known(verdict, reason) => {
                return Err(Answered {
                    reason,
                    ..Answered::by(DecidedBy::Numerals, verdict)
                });
            }
            Finding::Open(why) => return Err(Answered::open(why)),
            Finding::Ask(question) => question,
        };
        let question = match serde_json::to_value(question) {
            Ok(question) => question,
            Err(error) => return Err(Answered::open(error.to_string())),
        };
        let pool = match &mut self.library {
            Ok(pool) => pool,
            Err(why) => return Err(Answered::open(why.as_str())),
        };
        Ok(pool.submit_check(Request {
            code: CHECK.to_owned(),
            entry_points: vec!["check".to_owned()],
            arguments: vec![question],
            seed: 0,
            deadline: self.deadline,
            score: decided,
        }))
    }

    /// Submits and waits for the verdict. Use `submit` and `poll` to do other work in the meantime.
    pub fn verify(&mut self, question: &str, answer: &str, expected: &str) -> Verdict {
        let id = self.submit(question, answer, expected);
        let mut others = Vec::new();
        loop {
            // Terminates, because the pool gives up on every evaluation eventually.
            others.extend(self.poll(self.deadline));
            if let Some(place) = others.iter().position(|verified| verified.id == id) {
                let verified = others.remove(place);
                self.ready.extend(others);
                return verified.verdict;
            }
        }
    }

    /// Returns everything that has been decided or given up. If there is nothing yet, waits up to `timeout`
    /// for the first.
    pub fn poll(&mut self, timeout: Duration) -> Vec<Verified> {
        if let Ok(pool) = &mut self.library
            && !self.asked.is_empty()
        {
            let nothing_yet = self.ready.is_empty();
            let timeout = if nothing_yet { timeout } else { Duration::ZERO };
            for finished in pool.poll(timeout) {
                self.finish(finished);
            }
        }
        self.ready.drain(..).collect()
    }

    fn finish(&mut self, finished: Finished) {
        let Some(asked) = self.asked.remove(&finished.id) else {
            return;
        };
        self.by_key.remove(&asked.key);
        let outcome = finished.outcome;
        let answered = match (outcome, finished.score) {
            (Outcome::Ok, Some(1.0)) => Answered::by(DecidedBy::MathVerify, Verdict::Equal),
            (Outcome::Ok, _) => Answered::by(DecidedBy::MathVerify, Verdict::Unequal),
            (Outcome::Invalid, _) => Answered::open(finished.detail),
            _ => Answered::open(format!("math-verify: {outcome}, {}", finished.detail)),
        };
        // Do not cache a failure of the machinery: the next attempt may work.
        if outcome != Outcome::InfraError {
            self.known.insert(asked.key, answered.clone());
        }
        let first = answered.clone();
        self.ready
            .push_back(first.verified(asked.first, false, finished.times));
        for id in asked.joined {
            let joined = answered.clone();
            self.ready
                .push_back(joined.verified(id, true, Times::default()));
        }
    }

    /// How many verifications have been submitted but not yet returned.
    pub fn open(&self) -> usize {
        let waiting = self.asked.values().map(|asked| 1 + asked.joined.len());
        self.ready.len() + waiting.sum::<usize>()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The version of the library, or why it is not used.
    pub fn library(&self) -> std::result::Result<&str, &str> {
        match &self.library {
            Ok(pool) => Ok(pool.python().loaded.get(MODULE).map_or("", String::as_str)),
            Err(why) => Err(why),
        }
    }
}

impl Answered {
    fn by(by: DecidedBy, verdict: Verdict) -> Self {
        let reason = String::new();
        Self {
            verdict,
            by,
            reason,
        }
    }

    fn open(reason: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Undecided,
            by: DecidedBy::Nobody,
            reason: reason.into(),
        }
    }

    fn verified(self, id: VerificationId, cached: bool, times: Times) -> Verified {
        Verified {
            id,
            verdict: self.verdict,
            by: self.by,
            reason: self.reason,
            cached,
            times,
        }
    }
}

/// A pool whose zygote has the library loaded. Two slots, so that an answer on which the library hangs does
/// not hold up the others.
fn with_library(settings: Settings) -> Result<Pool> {
    let python = settings.python.clone();
    let pool = Pool::start(Settings {
        preload: vec![MODULE.to_owned()],
        warm_up: format!("{CHECK}\nwarm_up()\n"),
        parallel: 2,
        ..settings
    })?;
    if !pool.python().loaded.contains_key(MODULE) {
        let missing = format!("math-verify is not installed for {}", python.display());
        let hint =
            "`pip install math-verify` into that Python, or name another one (PYTHON, --python)";
        return Err(Error::preflight(missing).hint(hint));
    }
    Ok(pool)
}

/// Maps the return value of `check`: 1 for equal, 0 for unequal; any other text is a reason.
fn decided(returned: &Value) -> std::result::Result<f64, String> {
    match returned.as_str() {
        Some("equal") => Ok(1.0),
        Some("unequal") => Ok(0.0),
        Some(why) => Err(why.to_owned()),
        None => Err("math-verify: no verdict".to_owned()),
    }
}

fn key(question: &str, answer: &str, expected: &str) -> String {
    let mut key = PartsHasher::default();
    for text in [question, answer, expected] {
        key.part(text.as_bytes());
    }
    key.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_library_only_numerals_are_decided() {
        let mut verifier = Verifier::default();
        assert_eq!(verifier.library(), Err("math-verify is not used"));
        for (answer, expected) in [("0.5", "1/2"), ("4", "5"), ("1+x", "x+1"), (" ", "1")] {
            verifier.submit("q", answer, expected);
        }
        assert_eq!(verifier.open(), 4);
        let all = verifier.poll(Duration::ZERO);
        let said: Vec<_> = all
            .iter()
            .map(|one| (one.verdict, one.by, one.reason.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                (Verdict::Equal, DecidedBy::Numerals, ""),
                (Verdict::Unequal, DecidedBy::Numerals, ""),
                (
                    Verdict::Undecided,
                    DecidedBy::Nobody,
                    "math-verify is not used"
                ),
                (Verdict::Undecided, DecidedBy::Nobody, "there is no answer"),
            ]
        );
        assert_eq!(verifier.open(), 0);
    }

    #[test]
    fn the_cache_key_is_the_content_of_all_three_texts() {
        let mut verifier = Verifier::default();
        let questions = [
            ("q", "4", "4"),
            ("q", "4", "4"),
            ("q", "44", ""),
            ("q4", "4", ""),
        ];
        let ids = questions
            .map(|(question, answer, expected)| verifier.submit(question, answer, expected));
        let all = verifier.poll(Duration::ZERO);
        let got: Vec<_> = all.iter().map(|one| (one.id, one.cached)).collect();
        let cached = [false, true, false, false];
        assert_eq!(got, ids.into_iter().zip(cached).collect::<Vec<_>>());
        let Counts {
            hits, in_process, ..
        } = verifier.counts();
        assert_eq!((hits, in_process), (1, 3));
    }

    #[test]
    fn verify_keeps_the_results_of_other_submissions() {
        let mut verifier = Verifier::default();
        let first = verifier.submit("q", "1", "2");
        assert_eq!(verifier.verify("q", "2", "2"), Verdict::Equal);
        assert_eq!(verifier.poll(Duration::ZERO)[0].id, first);
    }

    #[test]
    fn an_overlong_answer_is_wrong() {
        let mut verifier = Verifier::default();
        verifier.submit("q", &"x+".repeat(2000), "x");
        let long = verifier.poll(Duration::ZERO).remove(0);
        assert_eq!(long.verdict, Verdict::Unequal);
        assert!(long.reason.contains("2000 bytes"), "{long:?}");
    }
}
