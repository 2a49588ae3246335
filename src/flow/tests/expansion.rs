//! The flows that a template expands to.

use std::sync::Arc;

use super::{Project, SUITE, TEMPLATE, generate, template};
use crate::flow::{Context, ExpandRequest, Flow, Part, check, expand};
use crate::hash::sha256;

#[test]
fn flows_take_the_rows_round_robin() {
    let expansion = Project::new().expand(7);
    let rows: Vec<_> = expansion
        .flows
        .iter()
        .map(|flow| (flow.flow, flow.row.as_str()))
        .collect();
    let expected = [(1, "late-fees"), (2, "search"), (3, "3"), (4, "late-fees")];
    assert_eq!(rows[..4], expected);
    assert_eq!(rows[6], (7, "late-fees"));
    assert_eq!(
        (expansion.num_flows, expansion.num_rows, expansion.num_steps),
        (7, 3, 2)
    );
    assert_eq!((expansion.fixture.bytes, expansion.fixture.files), (30, 2));
    assert_eq!(expansion.description.as_deref(), Some("Plan and do"));
}

/// Text from rows and fixtures is data: expressions in it are not evaluated.
#[test]
fn the_content_of_an_expanded_flow() {
    let flows = Project::new().expand(3).flows;
    insta::assert_snapshot!(String::from_utf8_lossy(&file(&flows[1])), @r#"
    {
      "template": "t",
      "flow": 2,
      "row": "search",
      "system": "You review code.\n===== FILE: a/x.md =====\n# {{ title }}\n===== FILE: b.py =====\nprint('${HOME}')\n",
      "steps": [
        {
          "id": "plan",
          "needs": [],
          "work": {
            "generate": {
              "context": "fresh",
              "prompt": [
                {
                  "text": "Find {{ row.x }}. Plan it."
                }
              ],
              "max_tokens": 16,
              "temperature": 0.0,
              "top_p": 1.0,
              "top_k": 0
            }
          }
        },
        {
          "id": "do",
          "needs": [
            "plan"
          ],
          "work": {
            "generate": {
              "context": "append",
              "prompt": [
                {
                  "text": "Flow 2: carry out "
                },
                {
                  "expr": "steps.plan.text"
                },
                {
                  "text": "."
                }
              ],
              "max_tokens": 128,
              "temperature": 0.5,
              "top_p": 1.0,
              "top_k": 0
            }
          }
        }
      ]
    }
    "#);
    assert_eq!(
        generate(&flows[2], 0).prompt,
        [Part::Text("Find ${steps.plan.text}. Plan it.".into())]
    );
    assert_eq!(generate(&flows[2], 1).context, Context::Append);
}

fn file(flow: &Flow) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(flow).expect("a flow is plain data");
    bytes.push(b'\n');
    bytes
}

/// Fails when the expansion produces different bytes: increment `EXPANDER_VERSION` and put the new digest
/// here.
#[test]
fn the_bytes_match_the_expander_version() {
    let project = Project::new();
    project.expand(3);
    let all: Vec<u8> = project.flows().into_values().flatten().collect();
    assert_eq!(crate::flow::cache::EXPANDER_VERSION, 3);
    insta::assert_snapshot!(sha256(&all), @"6571c7443b6c0873eda9b59e24b05c708cf3bbac5e95bcc4254e35d2c96b356a");
}

#[test]
fn loaded_flows_match_the_disk_and_share_the_system_message() {
    let project = Project::new();
    let cold = project.expand(5);
    let warm = project.expand(5);
    assert_eq!(cold.flows, warm.flows);
    let on_disk: Vec<Vec<u8>> = project.flows().into_values().collect();
    assert_eq!(on_disk, warm.flows.iter().map(file).collect::<Vec<_>>());
    for flows in [cold.flows, warm.flows] {
        let systems: Vec<_> = flows
            .iter()
            .filter_map(|flow| flow.system.as_ref())
            .collect();
        assert_eq!(systems.len(), 5);
        assert!(systems.iter().all(|system| Arc::ptr_eq(system, systems[0])));
    }
}

#[test]
fn flows_are_not_loaded_unless_requested() {
    let project = Project::new();
    for _ in 0..2 {
        let request = ExpandRequest {
            load: false,
            ..project.request(3)
        };
        assert!(expand(&request).expect("it expands").flows.is_empty());
        assert_eq!(project.flows().len(), 3);
    }
}

#[test]
fn steps_are_sorted_topologically() {
    let steps = "[[step]]\nid = \"c\"\nneeds = [\"a\", \"b\"]\nprompt = \"${steps['a'].text}${ steps.b.text }\"\n\
                 [[step]]\nid = \"b\"\nprompt = \"b\"\n[[step]]\nid = \"a\"\nprompt = \"a\"\n";
    let project = Project::empty().with("templates/t.toml", template("", steps));
    let flow = project.expand(1).flows.remove(0);
    let ids: Vec<_> = flow.steps.iter().map(|step| step.id.as_str()).collect();
    assert_eq!(ids, ["b", "a", "c"]);
    let parts = ["steps['a'].text", "steps.b.text"].map(|source| Part::Expr(source.into()));
    assert_eq!(generate(&flow, 2).prompt, parts);
    assert_eq!(flow.steps[2].needs, ["a", "b"]);
    assert_eq!((flow.row.as_str(), flow.system.clone()), ("1", None));
    let step = generate(&flow, 0);
    let sampling = (step.max_tokens, step.temperature, step.top_p, step.top_k);
    assert_eq!(sampling, (128, 0.0, 1.0, 0));
}

/// The first flow determines which literals are constant. A varying literal must not be mistaken for one.
#[test]
fn literals_that_depend_on_the_row_are_rendered_per_flow() {
    let texts = [
        "{% set row = row.task %}{{ row }}",
        "{% filter replace('x', row.task) %}x{% endfilter %}",
        "{% include 'row.txt' %}",
        "{% macro task() %}{{ row.task }}{% endmacro %}{{ task() }}",
        "{% from 'macro.txt' import task with context %}{{ task(row) }}",
        "{% for key in ['task'] %}{{ row[key] }}{% endfor %}",
        "{% if row.task is startingwith('1') %}1{% else %}2{% endif %}",
        "{{ flow.number }}",
        "{% if flow.number > 1 %}{{ row.task }}{% else %}1{% endif %}",
    ];
    for text in texts {
        let step = format!("[[step]]\nid = \"a\"\nprompt = \"\"\"{text}\"\"\"\n");
        let head = "suite = \"s.jsonl\"\nsystem = '''S {{ row.task }}'''";
        let flows = Project::empty()
            .with("templates/t.toml", template(head, &step))
            .with("templates/s.jsonl", "{\"task\": \"1\"}\n{\"task\": \"2\"}")
            .with("templates/row.txt", "{{ row.task }}")
            .with(
                "templates/macro.txt",
                "{% macro task(row) %}{{ row.task }}{% endmacro %}",
            )
            .expand(2)
            .flows;
        for (flow, expected) in flows.iter().zip(["1", "2"]) {
            assert_eq!(
                generate(flow, 0).prompt,
                [Part::Text(expected.into())],
                "{text}"
            );
            assert_eq!(
                flow.system.as_deref(),
                Some(format!("S {expected}").as_str())
            );
        }
    }
}

#[test]
fn text_is_rendered_verbatim() {
    let text = "  <b> & 'q' \\t ä\n\n{% if true %}\n  x\n{% endif %}\n $${HOME} costs 5$\n\n";
    let step = format!("[[step]]\nid = \"a\"\nprompt = '''\n{text}'''\n");
    let project =
        Project::empty().with("templates/t.toml", template("", &step.replace("'q'", "q")));
    let flow = project.expand(1).flows.remove(0);
    let expected = "  <b> & q \\t ä\n\n\n  x\n\n $ costs 5$\n\n".replace("$ ", "${HOME} ");
    assert_eq!(generate(&flow, 0).prompt, [Part::Text(expected)]);
}

#[test]
fn a_check_writes_nothing() {
    let project = Project::new();
    let expansion = check(&project.request(3)).expect("the template is right");
    assert_eq!(
        expansion.progress_line(),
        "Regenerating expanded flows (cache miss: no cache)"
    );
    assert!(!project.path("flows").exists());
}

#[test]
fn sharing_of_the_example() {
    let project = Project::new();
    let share = project.expand(3).share().expect("it renders");
    let system = project.expand(1).flows[0]
        .system
        .as_ref()
        .expect("it has one")
        .len() as u64;
    let plan = &share.steps[0];
    // "Find the fee." "Find {{ row.x }}." "Find ${…}."
    assert_eq!(plan.common_bytes, system + "Find ".len() as u64);
    assert_eq!(
        plan.common_bytes_reordered,
        system + " Plan it.".len() as u64
    );
    let append = &share.steps[1];
    assert_eq!(
        append.common_bytes, plan.common_bytes,
        "an answer ends what flows share"
    );
    assert_eq!(share.all_steps_bytes, plan.common_bytes);
    // Each second step continues the first one's conversation. Each first step except that of the first
    // flow shares its prefix with the first flow's.
    assert_eq!(
        share.reusable_bytes,
        plan.prompt_bytes + 2 * plan.common_bytes
    );
    insta::assert_snapshot!(share, @"
    Prefix sharing: 3 flows x 2 steps, 795 bytes of prompt text
      plan: 101 of 123 bytes are common to all flows, 105 with the constant parts first
      do: 101 of 142 bytes are common to all flows, 105 with the constant parts first
      all steps: 101 bytes are common to all requests
      reusable: 71.8 % of the text, 72.8 % with the constant parts first
    ");
}

#[test]
fn sharing_across_flows_stops_at_an_answer() {
    let steps = "[[step]]\nid = \"a\"\nprompt = \"same\"\n\
                 [[step]]\nid = \"b\"\nneeds = [\"a\"]\nprompt = \"x ${steps.a.text} and {{ flow.number }} y\"\n\
                 [[step]]\nid = \"c\"\nneeds = [\"a\"]\nprompt = \"x ${steps.a.text} and z\"\n";
    let project = Project::empty().with("templates/t.toml", template("", steps));
    let share = project.expand(2).share().expect("it renders");
    let common: Vec<u64> = share.steps.iter().map(|step| step.common_bytes).collect();
    assert_eq!(common, [4, 2, 2]);
    // `x `, ` and `, ` y` of the second, `x `, ` and z` of the third.
    let reordered: Vec<u64> = share
        .steps
        .iter()
        .map(|step| step.common_bytes_reordered)
        .collect();
    assert_eq!(reordered, [4, 9, 8]);
    assert_eq!(share.all_steps_bytes, 0);
    // Within a flow the answer is the same: `x ` and ` and ` of the third step, in both flows. The first
    // steps of the second flow share prefixes with those of the first.
    assert_eq!(share.reusable_bytes, 2 * 7 + 4 + 2);
}

#[test]
fn the_template_hash_covers_file_name_text_and_suite() {
    let project = Project::new()
        .with("templates/u.toml", TEMPLATE)
        .with("templates/v.toml", TEMPLATE.replace("Plan it.", "Plan it!"));
    let hash = |name| {
        let request = ExpandRequest {
            template: name,
            ..project.request(1)
        };
        check(&request)
            .expect("the template is right")
            .template_hash
    };
    assert_ne!(hash("t"), hash("u"), "another file name");
    assert_ne!(hash("t"), hash("v"), "another text");
    let before = hash("t");
    project.write("templates/t.suite.jsonl", SUITE.replace("fee", "fees"));
    assert_ne!(hash("t"), before, "another suite");
}
