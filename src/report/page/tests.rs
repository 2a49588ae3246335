use super::*;
use crate::record::profile::{Profile, ProfileRow};
use crate::record::warning::Warning;
use crate::report::testing::run;
use crate::terminal::is_active;
use crate::units::Millis;

#[test]
fn the_page_is_self_contained_and_escapes_text() {
    let (mut record, steps) = run(25, 1.0, 260.0, 195.0);
    record.workflows[3].row = "<script>alert(1)</script>\u{202e}\u{1b}[2J".to_owned();
    record.profile = Some(Profile {
        wall_s: 35.0,
        rows: vec![ProfileRow {
            name: "<i>span</i>".to_owned(),
            ncall: 465,
            nprim: 1,
            ..ProfileRow::default()
        }],
        ..Profile::default()
    });
    record.workflows[3].workflow_ms = Millis(1e6);
    let page = html(&record, &steps, &[]).expect("the template is sound");
    for outside in [
        "http:", "https:", "src=", "<link", "<script", "@import", "url(",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)"), "the row, as text");
    assert!(
        page.contains("\\u{202e}\\x1b[2J"),
        "marks and control characters"
    );
    let passes = |character: char| matches!(character, '\n' | '\t');
    assert!(!page.contains(|character: char| is_active(character) && !passes(character)));
    assert!(page.contains("A processor &lt;with&gt; a name"));
    // The template escapes slashes as well.
    assert!(page.contains("465&#x2f;1") && page.contains("&lt;i&gt;span"));
    assert!(!page.contains("NaN") && !page.contains("inf%"));
    assert_eq!(page.matches("<rect class=\"decode\"").count(), 75);
    assert!(page.matches("flow 25").count() > 0);
}

#[test]
fn pages_of_unusual_runs_are_well_formed() {
    for flows in [0, 1, 5, 40, 200, 500] {
        let (mut record, steps) = run(flows, 0.0, 3.0, 2.0);
        if flows < 5 {
            record.totals.benchmark_total_ms = None;
            record.engine_init_ms = None;
        }
        let page = html(&record, &steps, &[]).expect("the template is sound");
        assert!(!page.contains("NaN"), "{flows}");
        let body = page.split_once("</head>").expect("a head").1;
        assert_eq!(body.matches("<svg").count(), body.matches("</svg>").count());
        assert_eq!(
            body.matches("<section").count(),
            body.matches("</section>").count()
        );
        assert_eq!(body.matches("<div").count(), body.matches("</div>").count());
        assert!(!markdown(&record, &steps, &[]).contains("NaN"));
    }
}

#[test]
fn timeline_labels_do_not_overlap() {
    for flows in [1, 25, 40, 41, 120, 121, 200, 400] {
        let (_, steps) = run(flows, 0.0, 3.0, 2.0);
        let steps: Vec<&StepRecord> = steps.iter().collect();
        let drawn = timeline::timeline(String::new(), &steps, 0.0, Some(200.0));
        let drawn = serde_json::to_value(&drawn).expect("plain");
        let labels = drawn["labels"].as_array().expect("labels");
        let places: Vec<f64> = labels
            .iter()
            .map(|label| label["at"].as_f64().expect("px"))
            .collect();
        assert!(!places.is_empty());
        assert!(
            places.windows(2).all(|pair| pair[1] - pair[0] >= 15.9),
            "{flows}: {places:?}"
        );
    }
}

#[test]
fn ticks_are_few_and_round() {
    assert_eq!(
        chart::ticks(1000.0, 6.0),
        [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]
    );
    assert_eq!(chart::ticks(37.0, 6.0), [0.0, 10.0, 20.0, 30.0]);
    assert_eq!(chart::ticks(0.0, 6.0), [0.0]);
    for end in [0.003, 1.0, 7.7, 99.0, 101.0, 35_927.0] {
        let ticks = chart::ticks(end, 6.0);
        assert!((3..=7).contains(&ticks.len()), "{end}: {ticks:?}");
        assert!(ticks.iter().all(|tick| *tick <= end * (1.0 + 1e-9)));
    }
}

#[test]
fn the_page_warns_about_unreliable_figures() {
    let warned = |change: fn(&mut RunRecord), word: &str| {
        let (mut record, _) = run(25, 1.0, 260.0, 195.0);
        let before = facts::warnings(&record, &[]);
        assert!(before.is_empty(), "{before:?}");
        change(&mut record);
        let warnings = facts::warnings(&record, &[]);
        assert!(
            warnings.iter().any(|warning| warning.contains(word)),
            "{word}: {warnings:?}"
        );
    };
    warned(|run| run.status = Status::Running, "has not ended");
    warned(|run| run.workflows.truncate(4), "too few");
    warned(
        |run| run.workflows[0].workflow_ms = Millis(5000.0),
        "first workflow",
    );
    warned(
        |run| {
            for flow in &mut run.workflows[17..] {
                flow.workflow_ms = Millis(1.2 * flow.workflow_ms.0);
            }
        },
        "throttled",
    );
    warned(|run| run.workflows[9].workflow_ms = Millis(9000.0), "noise");
    warned(
        |run| run.totals.workflows_failed = 2,
        "2 workflows failed and are excluded",
    );
    warned(
        |run| run.totals.workflows_failed = 1,
        "1 workflow failed and is excluded",
    );
    warned(
        |run| {
            run.warnings.push(Warning {
                code: "answers_empty".to_owned(),
                text: "Some answers are empty".to_owned(),
                evidence: "3 of 75 answers".to_owned(),
            });
        },
        "Some answers are empty (3 of 75 answers).",
    );
    warned(
        |run| run.environment.git_revision = Some("abc-dirty".to_owned()),
        "uncommitted changes",
    );
}

#[test]
fn markdown_for_a_summary() {
    let (record, steps) = run(25, 1.0, 260.0, 195.0);
    insta::assert_snapshot!(markdown(&record, &steps, &[]));
}
