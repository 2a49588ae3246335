//! Kinds of steps, loops, parameters, and rows from an input file.

use super::{Project, generate};
use crate::flow::{ExpandRequest, Flow, Input, Work, expand};

const EVOLVE: &str = r#"schema = 1
name = "t"

[params]
generations = 2
children = 3
tone = "calm"

[[step]]
id = "root"
prompt = "begin, {{ params.tone }}"

[[step]]
id = "first"
kind = "evaluate"
of = "root"
task = "packing"

[[loop]]
generations = "generations"
steps = ["child", "trial", "best"]
start = "first"
carry = "best"

[[step]]
id = "child"
samples = "children"
temperature = 0.7
prompt = "${previous.text} {{ params.children }}"

[[step]]
id = "trial"
kind = "evaluate"
of = "child"
task = "packing"

[[step]]
id = "best"
kind = "select"
of = ["previous", "trial"]

[[step]]
id = "end"
needs = ["best"]
prompt = "${steps.best.text} ${steps.trial.scores | join}"
"#;

fn project(template: &str) -> Project {
    Project::empty().with("templates/t.toml", template)
}

fn ids(flow: &Flow) -> Vec<(&str, Vec<&str>)> {
    let steps = flow.steps.iter();
    steps
        .map(|step| {
            (
                step.id.as_str(),
                step.needs.iter().map(String::as_str).collect(),
            )
        })
        .collect()
}

#[test]
fn loops_are_unrolled() {
    let flow = project(EVOLVE).expand(1).flows.remove(0);
    assert_eq!(
        ids(&flow),
        [
            ("root", vec![]),
            ("first", vec!["root"]),
            ("child.1", vec!["first"]),
            ("trial.1", vec!["child.1"]),
            ("best.1", vec!["first", "trial.1"]),
            ("child.2", vec!["best.1"]),
            ("trial.2", vec!["child.2"]),
            ("best.2", vec!["best.1", "trial.2"]),
            ("end", vec!["best.2"]),
        ]
    );
    assert_eq!(generate(&flow, 2).samples, 3);
    let previous: Vec<_> = (flow.steps.iter())
        .filter_map(|step| step.generation.as_ref())
        .map(|of| (of.number, of.previous.as_str()))
        .collect();
    assert_eq!(previous[..3], [(1, "first"); 3]);
    assert_eq!(previous[3..], [(2, "best.1"); 3]);
    let Work::Select(select) = &flow.steps[7].work else {
        panic!("a selection");
    };
    assert_eq!(select.of, ["best.1", "trial.2"]);
    assert_eq!(flow.steps[5].name(), "child");
}

#[test]
fn parameters_can_be_overridden() {
    let project = project(EVOLVE);
    let set = |pairs: &[(&str, &str)]| {
        let params: Vec<(String, String)> = (pairs.iter())
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        expand(&ExpandRequest {
            params: &params,
            ..project.request(1)
        })
    };
    let one = set(&[]).expect("right");
    let other = set(&[("generations", "1"), ("tone", "bold")]).expect("right");
    assert_ne!(one.template_hash, other.template_hash);
    let flow = &other.flows[0];
    assert_eq!(flow.steps.len(), 6);
    assert_eq!(generate(flow, 0).prompt[0].as_text(), Some("begin, bold"));
    assert_eq!(set(&[]).expect("right").template_hash, one.template_hash);

    insta::assert_snapshot!(project.report(set(&[("generation", "1")])), @"
    exit code 2
    error: templates/t.toml has no parameter `generation` to set
    hint: did you mean `generations`? parameters: children, generations, tone
    ");
    insta::assert_snapshot!(project.report(set(&[("children", "many")])), @"
    exit code 2
    error: the parameter `children` cannot be `many`
    hint: it is a whole number, such as 3
    ");
    insta::assert_snapshot!(project.report(set(&[("children", "0")])), @"
    exit code 2
    error: templates/t.toml:27:11: `samples` cannot be 0
    hint: `samples` is a whole number from 1 to 10000, or the name of such a parameter
    ");
}

fn replaced(from: &str, to: &str) -> String {
    assert!(EVOLVE.contains(from), "{from}");
    project(&EVOLVE.replacen(from, to, 1)).failure()
}

#[test]
fn each_kind_has_its_own_keys() {
    insta::assert_snapshot!(replaced("of = \"root\"", "of = \"root\"\nprompt = \"x\""), @r#"
    exit code 2
    error: templates/t.toml:17:10: a step of kind `evaluate` has no `prompt`
    hint: its keys: id, kind, needs, of, task, timeout_ms
    "#);
    insta::assert_snapshot!(replaced("of = \"root\"\ntask = \"packing\"", "of = \"root\""), @r#"
    exit code 2
    error: templates/t.toml:14:6: the step `first` of kind `evaluate` lacks `task`
    hint: `task` is what a generated program has to do: task = "packing"
    "#);
    insta::assert_snapshot!(replaced("\"packing\"", "\"paking\""), @r#"
    exit code 2
    error: templates/t.toml:17:8: unknown task `paking`
    hint: did you mean `packing`? tasks: packing
    "#);
    insta::assert_snapshot!(replaced("kind = \"evaluate\"", "kind = \"evaluat\""), @r#"
    exit code 2
    error: templates/t.toml:15:8: `evaluat` is not a valid value
    hint: it is one of: generate, evaluate, verify, judge, select
    "#);
    insta::assert_snapshot!(replaced("of = \"root\"", "of = \"rot\""), @r#"
    exit code 2
    error: templates/t.toml:16:6: unknown step `rot` in `of`
    hint: did you mean `root`? steps: root, first, child, trial, best, end
    "#);
    insta::assert_snapshot!(replaced("of = [\"previous\", \"trial\"]", "of = \"child\""), @"
    exit code 2
    error: templates/t.toml:40:6: a step of kind `select` cannot work on `child`, which is of kind `generate`
    hint: it works on steps of kind evaluate, verify, judge, select
    ");
    insta::assert_snapshot!(replaced("temperature = 0.7\n", ""), @"
    exit code 2
    error: templates/t.toml:27:11: all samples would be the same: the step's temperature is 0
    hint: give it a temperature, such as temperature = 0.8
    ");
}

#[test]
fn loops_that_cannot_run() {
    insta::assert_snapshot!(replaced("start = \"first\"", "start = \"trial\""), @"
    exit code 2
    error: templates/t.toml:22:9: the loop starts from `trial`, which is in the loop
    hint: `start` is a step before the loop, from which the first generation starts
    ");
    insta::assert_snapshot!(replaced("carry = \"best\"", "carry = \"end\""), @"
    exit code 2
    error: templates/t.toml:23:9: `end` is not a step of the loop
    hint: `carry` is the step of the loop that the next generation starts from
    ");
    insta::assert_snapshot!(replaced("[\"child\", \"trial\", \"best\"]", "[\"child\", \"best\"]"), @"
    exit code 2
    error: templates/t.toml:32:6: `trial` is between steps of a loop, but is not in it
    hint: add it to the loop's `steps`
    ");
    insta::assert_snapshot!(replaced("${steps.best.text} $", "${previous.text} $"), @"
    exit code 2
    error: templates/t.toml:45:13: unknown variable `previous`
    hint: only the steps of a [[loop]] have it
    ");
    insta::assert_snapshot!(replaced("${previous.text}", "${steps.best.text}"), @r#"
    exit code 2
    error: templates/t.toml:29:19: the step `best` is read but is not a dependency
    hint: add "best" to the `needs` of the step `child`, or read `previous`, the result of the preceding generation
    "#);
    insta::assert_snapshot!(replaced("id = \"end\"\nneeds = [\"best\"]", "id = \"end\"\nneeds = [\"previous\"]"), @"
    exit code 2
    error: templates/t.toml:44:10: `end` is not in a loop, so it has no `previous`
    hint: `previous` is the result of the preceding generation; name a step
    ");
}

#[test]
fn loops_that_depend_on_each_other() {
    const LOOPS: &str = r#"schema = 1
name = "t"

[[step]]
id = "root"
prompt = "root"

[[loop]]
generations = 2
steps = ["a1", "a2"]
start = "root"
carry = "a2"

[[loop]]
generations = 2
steps = ["b1", "b2"]
start = "root"
carry = "b2"

[[step]]
id = "a1"
prompt = "a1"

[[step]]
id = "a2"
needs = ["b2"]
prompt = "a2"

[[step]]
id = "b1"
needs = ["a1"]
prompt = "b1"

[[step]]
id = "b2"
prompt = "b2"
"#;
    let flow = project(LOOPS).expand(1).flows.remove(0);
    let ids: Vec<&str> = flow.steps.iter().map(|step| step.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "root", "a1.1", "b2.1", "b2.2", "a2.1", "a1.2", "a2.2", "b1.1", "b1.2"
        ]
    );
    let circle = LOOPS.replace("carry = \"b2\"", "carry = \"b1\"");
    insta::assert_snapshot!(project(&circle).failure(), @"
    exit code 2
    error: templates/t.toml:8:1: dependency cycle between loop generations: a2.1 -> b2.2 -> b1.1 -> a1.2 -> a2.1
    hint: an arrow points from a step to one that it needs; outside of a loop, a step of it is that of its last generation
    ");
}

#[test]
fn a_template_with_thousands_of_steps() {
    let mut template =
        "schema = 1\nname = \"t\"\n[[step]]\nid = \"s0\"\nprompt = \"p\"\n".to_owned();
    let count = 3000;
    for number in 1..count {
        let before = number - 1;
        template.push_str(&format!(
            "[[step]]\nid = \"s{number}\"\nneeds = [\"s{before}\"]\n\
             prompt = \"${{steps.s{before}.text}} ${{steps.s0.text}}\"\n"
        ));
    }
    let flow = project(&template).expand(1).flows.remove(0);
    assert!((flow.steps.iter().enumerate()).all(|(place, step)| step.id == format!("s{place}")));
}

#[test]
fn an_input_file_replaces_the_suite() {
    let project = Project::new().with(
        "rows.jsonl",
        "{\"id\": \"x\", \"task\": \"One.\"}\n{\"task\": \"Two.\"}\n{\"id\": \"x\", \"task\": \"Three.\"}\n",
    );
    let path = project.path("rows.jsonl");
    let with = |limit, repeats| {
        let input = Input {
            path: &path,
            limit,
            repeats,
        };
        expand(&ExpandRequest {
            input: Some(input),
            ..project.request(99)
        })
        .expect("right")
    };
    let all = with(None, 2);
    assert_eq!((all.num_flows, all.num_rows), (6, 3));
    let rows: Vec<&str> = all.flows.iter().map(|flow| flow.row.as_str()).collect();
    assert_eq!(rows, ["x", "2", "3", "x", "2", "3"]);
    let text = |flow: &Flow| generate(flow, 0).prompt[0].as_text().map(str::to_owned);
    assert_eq!(text(&all.flows[2]).as_deref(), Some("Three. Plan it."));
    let some = with(Some(2), 2);
    assert_eq!(some.num_flows, 4);
    assert_ne!(some.template_hash, all.template_hash);
}

proptest::proptest! {
    /// For any loop, the steps are in topological order, and none is lost.
    #[test]
    fn unrolled_loops_are_in_order(generations in 1usize..6, children in 1usize..5, late in proptest::prelude::any::<bool>()) {
        let mut template = EVOLVE
            .replace("generations = 2", &format!("generations = {generations}"))
            .replace("children = 3", &format!("children = {children}"));
        if late {
            // Reverse the steps: their order in the file does not matter.
            let (head, steps) = template.split_at(template.find("[[step]]").expect("steps"));
            let mut steps: Vec<&str> = steps.split("\n[[").collect();
            steps.reverse();
            let last = steps.pop().expect("one");
            template = format!("{head}{}\n[[{}", last, steps.join("\n[["));
        }
        let flow = project(&template).expand(1).flows.remove(0);
        proptest::prop_assert_eq!(flow.steps.len(), 3 + 3 * generations);
        for (place, step) in flow.steps.iter().enumerate() {
            for need in &step.needs {
                proptest::prop_assert!(flow.steps[..place].iter().any(|step| step.id == *need));
            }
        }
    }
}
