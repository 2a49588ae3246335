//! The recorded answers that come with the templates: what `expect` says of each is what comes of it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use flowbench::evaluate::verify::{Verdict, compare, given_answer};
use flowbench::evaluate::{
    Finished, Outcome, Request, Verifier, VerifierSettings, packing, program,
};
use serde::Deserialize;

use super::support::{PATIENCE, collect, has, is_named, pool, python, settings};

/// How much a score may differ where a program computes with numpy, whose last bits are not the same
/// everywhere and matter to where it ends up.
const LEEWAY: f64 = 0.02;

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("templates")
        .join(name);
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[derive(Deserialize)]
struct Recorded {
    step: String,
    sample: u32,
    output: String,
    expect: Expected,
}

#[derive(Deserialize)]
struct Expected {
    outcome: Outcome,
    score: Option<f64>,
    needs: Option<String>,
}

#[test]
fn recorded_programs_come_to_what_is_expected() {
    let recorded: Vec<Recorded> = read("evolve_packing.script.jsonl");
    let mut pool = pool();
    let can_run = |recorded: &&Recorded| match &recorded.expect.needs {
        Some(module) => has(pool.python(), module),
        None => true,
    };
    let recorded: Vec<&Recorded> = recorded.iter().filter(can_run).collect();
    let ids: Vec<_> = recorded
        .iter()
        .map(|recorded| {
            let never_ends = recorded.expect.outcome == Outcome::Timeout;
            pool.submit(Request {
                code: program::of_answer(&recorded.output, &packing::ENTRY_POINTS).unwrap(),
                entry_points: packing::ENTRY_POINTS.map(str::to_owned).to_vec(),
                arguments: Vec::new(),
                seed: 1,
                deadline: Duration::from_secs(if never_ends { 1 } else { 120 }),
                score: packing::score,
            })
        })
        .collect();
    let all: HashMap<_, Finished> = collect(&mut pool);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (id, recorded) in ids.iter().zip(&recorded) {
        let (finished, expected) = (&all[id], &recorded.expect);
        let which = format!("{} {}: {finished:?}", recorded.step, recorded.sample);
        assert_eq!(finished.outcome, expected.outcome, "{which}");
        assert_eq!(
            finished.score.is_some(),
            expected.score.is_some(),
            "{which}"
        );
        let leeway = expected.needs.as_ref().map_or(1e-9, |_| LEEWAY);
        let off = finished.score.unwrap_or(0.0) - expected.score.unwrap_or(0.0);
        assert!(off.abs() <= leeway, "{which}");
        outcomes.push(finished.outcome);
    }
    for outcome in [
        Outcome::Ok,
        Outcome::Invalid,
        Outcome::RuntimeError,
        Outcome::Timeout,
        Outcome::BadOutput,
    ] {
        assert!(outcomes.contains(&outcome), "no program is {outcome}");
    }
}

#[derive(Deserialize)]
struct Problem {
    id: String,
    problem: String,
    answer: String,
}

#[derive(Deserialize)]
struct Answer {
    row: String,
    step: String,
    output: String,
    expect: Option<String>,
}

#[test]
fn recorded_answers_are_judged_as_expected() {
    let problems: Vec<Problem> = read("math_judge.suite.jsonl");
    let problems: HashMap<_, _> = problems.iter().map(|it| (it.id.as_str(), it)).collect();
    let answers: Vec<Answer> = read("math_judge.script.jsonl");
    let mut verifier = Verifier::start(VerifierSettings {
        deadline: PATIENCE,
        ..VerifierSettings::new(settings(python()))
    })
    .unwrap();
    let has_library = verifier.library().is_ok();
    assert!(has_library || !is_named(), "{:?}", verifier.library());
    let mut seen: HashMap<&str, u32> = HashMap::new();
    for answer in answers.iter().filter(|answer| answer.step == "answer") {
        let problem = problems[answer.row.as_str()];
        let expected = answer.expect.as_deref().unwrap();
        *seen.entry(expected).or_default() += 1;
        let Some(boxed) = given_answer(&answer.output) else {
            assert_eq!(expected, "no_answer", "{}", answer.row);
            continue;
        };
        let boxed = boxed.as_ref();
        let verdict = verifier.verify(&problem.problem, boxed, &problem.answer);
        let which = format!("{}: {boxed} | {}", answer.row, problem.answer);
        if has_library || compare(boxed, &problem.answer) != Verdict::Undecided {
            assert_eq!(verdict.as_str(), expected, "{which}");
        } else {
            assert_eq!(verdict, Verdict::Undecided, "{which}");
        }
    }
    assert_eq!(seen.values().sum::<u32>() as usize, problems.len());
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn every_problem_has_an_id_of_its_own_and_an_answer_equal_to_itself() {
    let problems: Vec<Problem> = read("math_judge.suite.jsonl");
    let ids: HashSet<_> = problems.iter().map(|problem| &problem.id).collect();
    assert!(problems.len() >= 120);
    assert_eq!(ids.len(), problems.len());
    for Problem { id, answer, .. } in &problems {
        assert_eq!(compare(answer, answer), Verdict::Equal, "{id}");
    }
}
