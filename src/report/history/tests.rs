use super::*;
use crate::record::Status;
use crate::record::compare::Cause;

fn trend() -> Trend {
    let run = |(index, value): (usize, f64)| TrendRun {
        run_id: format!("202601{:02}T093000Z-reuse", index + 1),
        started_at: format!("2026-01-{:02}T09:30:00Z", index + 1),
        status: Status::Complete,
        revision: None,
        labels: [("commit".to_owned(), format!("abcdef{index:06}"))].into(),
        flows: 25,
        value: Some(value),
        invalid: match index {
            4 => vec!["flows_missing".to_owned()],
            _ => Vec::new(),
        },
        kept: index > 2,
    };
    let values = [1000.0, 1010.0, 995.0, 1005.0, 300.0, 1110.0, 1120.0, 1100.0];
    let level = |first, last, mean, change| Level {
        first,
        last,
        mean,
        deviation: Some(0.008),
        change,
        causes: Vec::new(),
        differs: Vec::new(),
    };
    let mut after = level(5, 7, 1110.0, Some(0.107));
    after.causes.push(Cause {
        part: 0.091,
        step: "executor".to_owned(),
        term: "prefill_tokens".to_owned(),
        from: 610.0,
        to: 1900.0,
        why: "1290 tokens no longer reused".to_owned(),
    });
    after.differs.push("commit abcdef000003 → <b>".to_owned());
    Trend {
        metric: "workflow_ms".to_owned(),
        step: None,
        template: "three_step".to_owned(),
        mode: "reuse".to_owned(),
        runs: values.into_iter().enumerate().map(run).collect(),
        levels: vec![level(0, 3, 1002.5, None), after],
        other_runs: 1,
        earlier_runs: 12,
    }
}

#[test]
fn what_people_read() {
    let lines = lines(&trend());
    assert!(
        lines
            .iter()
            .all(|line| line.lines().all(|line| line.chars().count() <= 80))
    );
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn the_page_has_a_dot_for_each_run_and_escapes_what_it_shows() {
    let page = html(&trend()).expect("renders");
    assert_eq!(page.matches("<i class=\"dot").count(), 8);
    assert_eq!(page.matches("dot invalid").count(), 1);
    assert!(page.contains("&lt;b&gt;") && !page.contains("<b>&lt;"));
    let empty = Trend {
        runs: Vec::new(),
        levels: Vec::new(),
        ..trend()
    };
    assert!(
        html(&empty)
            .expect("renders")
            .contains("No run has this metric")
    );
    assert_eq!(lines(&empty).len(), 5);
}
