//! Answers that only a library can compare. These tests want math-verify, see `support::python`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flowbench::evaluate::verify::Verdict::{self, Equal, Undecided, Unequal};
use flowbench::evaluate::{
    DecidedBy, Library, Settings, VerificationId, Verified, Verifier, VerifierSettings,
};

use super::support::{PATIENCE, is_named, python, settings};

/// With the library, if this Python has it.
fn verifier(deadline: Duration) -> Option<Verifier> {
    let settings = VerifierSettings {
        deadline,
        ..VerifierSettings::new(settings(python()))
    };
    let verifier = Verifier::start(settings).unwrap();
    let missing = verifier.library().err();
    assert!(missing.is_none() || !is_named(), "{missing:?}");
    missing.is_none().then_some(verifier)
}

fn patient_verifier() -> Option<Verifier> {
    verifier(Duration::from_secs(120))
}

fn collect(verifier: &mut Verifier) -> HashMap<VerificationId, Verified> {
    let give_up = Instant::now() + PATIENCE;
    let mut all = HashMap::new();
    while verifier.open() > 0 {
        assert!(Instant::now() < give_up, "{verifier:?}");
        let verified = verifier.poll(Duration::from_secs(1));
        all.extend(verified.into_iter().map(|verified| (verified.id, verified)));
    }
    all
}

fn expect(verifier: &mut Verifier, cases: &[(&str, &str, Verdict)]) {
    let ids: Vec<_> = cases
        .iter()
        .map(|(answer, expected, _)| verifier.submit("q", answer, expected))
        .collect();
    let all = collect(verifier);
    let got: Vec<_> = ids.iter().map(|id| &all[id]).collect();
    for (verified, (answer, expected, verdict)) in got.into_iter().zip(cases) {
        let case = format!("{answer} | {expected}: {verified:?}");
        assert_eq!(verified.verdict, *verdict, "{case}");
        assert_eq!(verified.reason.is_empty(), *verdict != Undecided, "{case}");
    }
}

#[test]
fn forms_of_one_answer_are_equal() {
    let Some(mut verifier) = patient_verifier() else {
        return;
    };
    expect(
        &mut verifier,
        &[
            (r"\frac{2}{4}", "0.5", Equal),
            (r"\sqrt{12}", r"2\sqrt{3}", Equal),
            (r"2\sqrt3", r"2\sqrt{3}", Equal),
            ("1 + x", "x+1", Equal),
            ("(x-1)(x+1)", "x^2 - 1", Equal),
            (r"\dfrac{\pi}{2}", r"\frac{1}{2}\pi", Equal),
            (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", Equal),
            (r"(1, 2]", r"\left(1, 2\right]", Equal),
            (r"\{3, 1\}", r"\{1, 3\}", Equal),
            (r"$\frac{7}{3}$", "7/3", Equal),
            ("x = 7/3 + 0", r"\frac{7}{3}", Equal),
            (r"\sqrt{13}", r"2\sqrt{3}", Unequal),
            ("1/3", "0.25", Unequal),
            ("x + 2", "x + 1", Unequal),
            (r"1 < x \le 2", "(1, 2]", Equal),
            (r"3 \text{ cm}", "3", Equal),
            ("(1, 2)", "[1, 2]", Unequal),
            (r"3\pi", r"2\pi", Unequal),
        ],
    );
}

#[test]
fn who_decided_is_told_and_nothing_is_asked_twice() {
    let Some(mut verifier) = patient_verifier() else {
        return;
    };
    let here = verifier.submit("q", "0.5", "1/2");
    let first = verifier.submit("q", r"\sqrt{8}", r"2\sqrt{2}");
    let joined = verifier.submit("q", r"\sqrt{8}", r"2\sqrt{2}");
    let all = collect(&mut verifier);
    assert_eq!(all[&here].by, DecidedBy::Numerals);
    assert_eq!(all[&first].by, DecidedBy::MathVerify);
    assert!(all[&first].times.run > Duration::ZERO);
    assert!(!all[&first].cached);
    assert!(all[&joined].cached);
    assert_eq!(all[&joined].verdict, Equal);
    let later = verifier.submit("q", r"\sqrt{8}", r"2\sqrt{2}");
    let other = verifier.submit("another q", r"\sqrt{8}", r"2\sqrt{2}");
    let all = collect(&mut verifier);
    assert!(all[&later].cached && !all[&other].cached, "{all:?}");
    let counts = verifier.counts();
    assert_eq!(
        (counts.in_process, counts.by_library, counts.hits),
        (1, 2, 2)
    );
}

#[test]
fn an_answer_without_an_end_is_killed_and_the_next_is_checked() {
    let Some(mut verifier) = verifier(Duration::from_secs(2)) else {
        return;
    };
    // Each power is small enough to be tried, all of them together are not.
    let endless = r"\sin(((1000^{1000})^{1000})^{1000})x";
    let tower = verifier.submit("q", endless, "x");
    let tower = &collect(&mut verifier)[&tower];
    assert_eq!(tower.verdict, Undecided, "{tower:?}");
    assert!(
        tower.reason.contains("timeout") || tower.reason.contains("oom"),
        "{tower:?}"
    );
    // On a busy machine two seconds may be too short for this one as well, but not every time.
    let answered = (0..20).any(|round| {
        let next = verifier.submit(&format!("{round}"), r"\sqrt{8}", r"2\sqrt{2}");
        collect(&mut verifier)[&next].verdict == Equal
    });
    assert!(answered);
}

#[test]
fn hostile_answers_are_text() {
    let Some(mut verifier) = patient_verifier() else {
        return;
    };
    let written = std::env::temp_dir().join("flowbench-verifier-was-here");
    let _ = fs::remove_file(&written);
    let open = format!("__import__('pathlib').Path({written:?}).write_text('x')");
    let deep = format!("{}1{}", "(".repeat(900), ")".repeat(900));
    let answers = [
        open.as_str(),
        "'); raise SystemExit(1)  #",
        "\"\"\"\nreturn 'equal'\n\"\"\"",
        "equal",
        "}{",
        "}} \\boxed{7",
        "\\boxed{\\boxed{",
        "\0\0",
        "\\input{/etc/passwd}",
        "\\",
        "$$$",
        "\u{202e}7\u{0}",
        deep.as_str(),
    ];
    let ids: Vec<_> = answers
        .iter()
        .map(|answer| verifier.submit("q", answer, r"\sqrt{7}"))
        .collect();
    let all = collect(&mut verifier);
    for (id, answer) in ids.iter().zip(answers) {
        assert_ne!(all[id].verdict, Equal, "{answer:?}: {:?}", all[id]);
    }
    assert!(!written.exists());
    expect(&mut verifier, &[(r"\sqrt{8}", r"2\sqrt{2}", Equal)]);
}

#[test]
fn the_table_of_answers_holds_with_the_library() {
    let Some(mut verifier) = patient_verifier() else {
        return;
    };
    let table =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/answers.jsonl"))
            .unwrap();
    let lines: Vec<[String; 4]> = (table.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ids: Vec<_> = lines
        .iter()
        .map(|[answer, expected, ..]| verifier.submit("q", answer, expected))
        .collect();
    let all = collect(&mut verifier);
    for (id, [answer, expected, _, verdict]) in ids.iter().zip(&lines) {
        let verified = &all[id];
        let case = format!("{answer} | {expected}: {verified:?}");
        assert_eq!(verified.verdict.as_str(), verdict, "{case}");
    }
}

#[test]
fn a_verdict_of_the_library_is_one_on_the_whole_text() {
    let Some(mut verifier) = patient_verifier() else {
        return;
    };
    expect(
        &mut verifier,
        &[
            // Read as mathematics, with every sign of it.
            (r"\pi \cdot 10^{-20}", r"2\pi \cdot 10^{-20}", Unequal),
            ("3.14159265", r"\pi", Equal),
            ("3.14", r"\pi", Unequal),
            (r"60^\circ", r"\frac{\pi}{3}", Equal),
            (r"\sin 30^\circ", r"\frac{1}{2}", Equal),
            ("(1 + i)^2", "2i", Equal),
            (r"(\sqrt{8}, 1)", r"(2\sqrt{2}, 1)", Equal),
            (r"\{1, \sqrt{8}\}", r"\{2\sqrt{2}, 1\}", Equal),
            (
                r"(-\infty, 2) \cup (3, \infty)",
                r"(3, \infty) \cup (-\infty, 2)",
                Equal,
            ),
            (
                r"(-\infty, 2) \cup (3, \infty)",
                r"(-\infty, 2] \cup (3, \infty)",
                Unequal,
            ),
            ("2x^2 + 2y^2 = 8", "x^2 + y^2 = 4", Equal),
            ("x^2 + y^2 = 9", "x^2 + y^2 = 4", Unequal),
            ("x > 3", "3 < x", Equal),
            ("x > 3", "x > 4", Unequal),
            // They agree for some values only, or differ by letters that mean the same, perhaps.
            (r"\sqrt{x^2}", "x", Undecided),
            ("(-1)^{2n}", "1", Undecided),
            (r"\frac{n(n+1)}{2}", r"\frac{k(k+1)}{2}", Undecided),
            ("X + 1", "x + 1", Undecided),
            ("x^2 + C", "x^2", Undecided),
        ],
    );
}

#[test]
fn a_library_that_cannot_be_had_is_an_error_only_where_it_is_needed() {
    let mut settings = VerifierSettings::new(Settings::new("/nowhere/python3", []));
    let mut verifier = Verifier::start(settings.clone()).unwrap();
    verifier.submit("q", "x+1", "1+x");
    verifier.submit("q", "3", "3.0");
    let all = verifier.poll(Duration::ZERO);
    assert_eq!(all[0].verdict, Undecided);
    assert!(all[0].reason.contains("'/nowhere/python3'"), "{all:?}");
    assert_eq!(all[1].verdict, Equal);
    settings.library = Library::Needed;
    let error = Verifier::start(settings).unwrap_err();
    assert_eq!(error.exit() as u8, 3);
    assert!(error.hint_text().is_some());
}
