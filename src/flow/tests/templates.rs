//! Errors in templates are reported with their position and a hint.

use super::{Project, TEMPLATE, template};
use crate::flow::expand;

/// The error of [`TEMPLATE`] after one replacement.
fn replaced(from: &str, to: &str) -> String {
    assert!(TEMPLATE.contains(from), "{from}");
    Project::new()
        .with("templates/t.toml", TEMPLATE.replacen(from, to, 1))
        .failure()
}

/// The error of a template with these steps, without fixture and suite.
fn of_steps(steps: &str) -> String {
    Project::empty()
        .with("templates/t.toml", template("", steps))
        .failure()
}

#[test]
fn missing_template() {
    let project = Project::new().with("templates/three_step.toml", TEMPLATE);
    let failure = |name: &str| {
        let mut request = project.request(1);
        request.template = name;
        project.report(expand(&request))
    };
    insta::assert_snapshot!(failure("three_stp"), @"
    exit code 2
    error: there is no template `three_stp` (searched: templates/three_stp.toml, the shipped templates)
    hint: did you mean `three_step`? templates: evolve_packing, math_judge, t, three_step, three_step_full
    ");
    insta::assert_snapshot!(failure("nothing/like/it.toml"), @"
    exit code 2
    error: there is no template `nothing/like/it.toml` (searched: nothing/like/it.toml, templates/nothing/like/it.toml)
    hint: templates: evolve_packing, math_judge, t, three_step, three_step_full
    ");
    insta::assert_snapshot!(failure("three_stepp.toml"), @"
    exit code 2
    error: there is no template `three_stepp.toml` (searched: three_stepp.toml, templates/three_stepp.toml, the shipped templates)
    hint: did you mean `three_step`? templates: evolve_packing, math_judge, t, three_step, three_step_full
    ");
    insta::assert_snapshot!(failure(""), @"
    exit code 2
    error: there is no template `` (searched: templates/.toml, the shipped templates)
    hint: templates: evolve_packing, math_judge, t, three_step, three_step_full
    ");
    insta::assert_snapshot!(Project::empty().failure(), @"
    exit code 2
    error: there is no template `t` (searched: templates/t.toml, the shipped templates)
    hint: templates: evolve_packing, math_judge, three_step, three_step_full
    ");
}

#[test]
fn a_template_is_a_name_or_a_path() {
    let project = Project::new()
        .with("elsewhere/t.toml", TEMPLATE)
        .with("elsewhere/t.suite.jsonl", super::SUITE);
    let elsewhere = project.path("elsewhere/t.toml");
    for name in ["t", "t.toml", elsewhere.to_str().expect("UTF-8")] {
        let mut request = project.request(1);
        request.template = name;
        let expansion = expand(&request).expect("the template is there");
        assert_eq!(expansion.flows.len(), 1);
    }
}

#[test]
fn bad_toml() {
    insta::assert_snapshot!(replaced("\"t\"", "\"t"), @r#"
    exit code 2
    error: templates/t.toml:2:10: invalid basic string, expected `"`
    hint: templates are TOML (https://toml.io): text is in quotes, multi-line text in """
    "#);
    insta::assert_snapshot!(replaced("name =", "name"), @r#"
    exit code 2
    error: templates/t.toml:2:6: key with no value, expected `=`
    hint: templates are TOML (https://toml.io): text is in quotes, multi-line text in """
    "#);
    insta::assert_snapshot!(replaced("name =", "schema ="), @"
    exit code 2
    error: templates/t.toml:2:1: duplicate key `schema`
    hint: use each key once; each step has its own [[step]]
    ");
    insta::assert_snapshot!(
        Project::new().with("templates/t.toml", b"schema = 1\nname = \"\xff\"").failure(), @"
    exit code 2
    error: templates/t.toml: not UTF-8 at byte 19 (0xff)
    hint: prompts are made of text: convert the file, or leave it out
    "
    );
}

#[test]
fn keys() {
    insta::assert_snapshot!(replaced("suite =", "suit ="), @"
    exit code 2
    error: templates/t.toml:4:1: unknown key `suit`
    hint: did you mean `suite`? known keys here: schema, name, description, suite, fixture, params, system, step, loop
    ");
    insta::assert_snapshot!(replaced("max_tokens =", "maxtokens ="), @"
    exit code 2
    error: templates/t.toml:12:1: unknown key `maxtokens`
    hint: did you mean `max_tokens`? known keys here: id, kind, needs, context, prompt, samples, max_tokens, temperature, top_p, top_k, of, task, timeout_ms, question, expected, how, keep
    ");
    insta::assert_snapshot!(replaced("{ dir =", "{ folder ="), @"
    exit code 2
    error: templates/t.toml:5:13: unknown key `folder`
    hint: known keys here: dir, include, rows
    ");
    insta::assert_snapshot!(replaced("name = \"t\"\n", ""), @"
    exit code 2
    error: templates/t.toml:1:1: the key `name` is missing
    hint: `name` is text in quotes
    ");
    insta::assert_snapshot!(replaced("id = \"do\"\n", ""), @"
    exit code 2
    error: templates/t.toml:14:1: the key `id` is missing
    hint: `id` is text in quotes
    ");
    insta::assert_snapshot!(replaced("schema = 1\n", ""), @"
    exit code 2
    error: templates/t.toml:1:1: the key `schema` is missing
    hint: begin the template with: schema = 1
    ");
    insta::assert_snapshot!(replaced("schema = 1\n", "schema = 2\nnew_key = 1\n"), @"
    exit code 2
    error: templates/t.toml:1:10: templates of schema 2 are not supported
    hint: this flowbench reads schema = 1
    ");
    insta::assert_snapshot!(replaced("name = \"t\"", "name = \"a b\""), @"
    exit code 2
    error: templates/t.toml:2:8: `a b` cannot be a name
    hint: use letters, digits, `_` and `-`, starting with a letter or `_`; at most 64 characters
    ");
}

#[test]
fn types_and_ranges() {
    insta::assert_snapshot!(replaced("max_tokens = 16", "max_tokens = \"16\""), @"
    exit code 2
    error: templates/t.toml:12:14: unknown parameter `16` in `max_tokens`
    hint: `max_tokens` is a whole number, or the name of a parameter; there are no parameters of [params]
    ");
    insta::assert_snapshot!(replaced("max_tokens = 16", "max_tokens = 0"), @"
    exit code 2
    error: templates/t.toml:12:14: `max_tokens` cannot be 0
    hint: `max_tokens` is a whole number from 1 to 4294967295, or the name of such a parameter
    ");
    insta::assert_snapshot!(replaced("max_tokens = 16", "max_tokens = -1"), @"
    exit code 2
    error: templates/t.toml:12:14: `max_tokens` cannot be -1
    hint: `max_tokens` is a whole number from 1 to 4294967295, or the name of such a parameter
    ");
    insta::assert_snapshot!(replaced("max_tokens = 16", "max_tokens = 1.5"), @"
    exit code 2
    error: templates/t.toml:12:14: expected a whole number or a parameter's name
    hint: `max_tokens` is a whole number of at least 1: max_tokens = 128
    ");
    insta::assert_snapshot!(replaced("temperature = 0.5", "temperature = -0.5"), @"
    exit code 2
    error: templates/t.toml:19:15: `temperature` cannot be -0.5
    hint: `temperature` is a number of at least 0, where 0 is greedy: temperature = 0.7
    ");
    insta::assert_snapshot!(replaced("temperature = 0.5", "temperature = nan"), @"
    exit code 2
    error: templates/t.toml:19:15: `temperature` cannot be NaN
    hint: `temperature` is a number of at least 0, where 0 is greedy: temperature = 0.7
    ");
    insta::assert_snapshot!(replaced("temperature = 0.5", "top_p = 0"), @"
    exit code 2
    error: templates/t.toml:19:9: `top_p` cannot be 0
    hint: `top_p` is a number above 0 and at most 1: top_p = 0.95
    ");
    insta::assert_snapshot!(replaced("temperature = 0.5", "top_k = -3"), @"
    exit code 2
    error: templates/t.toml:19:9: `top_k` cannot be -3
    hint: `top_k` is a whole number, where 0 keeps every token: top_k = 40
    ");
    insta::assert_snapshot!(replaced("needs = [\"plan\"]", "needs = \"plan\""), @r#"
    exit code 2
    error: templates/t.toml:16:9: invalid type: string "plan", expected a list
    hint: `needs` is a list of steps' ids: needs = ["planner"]
    "#);
    insta::assert_snapshot!(replaced("context = \"append\"", "context = \"apend\""), @"
    exit code 2
    error: templates/t.toml:17:11: `apend` is not a valid value
    hint: it is one of: fresh, append
    ");
    insta::assert_snapshot!(replaced("needs = [\"plan\"]", "needs = [1]"), @r#"
    exit code 2
    error: templates/t.toml:16:10: invalid type: integer `1`, expected a string
    hint: `needs` is a list of steps' ids: needs = ["planner"]
    "#);
    insta::assert_snapshot!(of_steps("[step]\nid = \"a\"\nprompt = \"p\"\n"), @"
    exit code 2
    error: templates/t.toml:4:1: invalid type: table, expected a list
    hint: `step` is a table for each step, headed [[step]]
    ");
    insta::assert_snapshot!(replaced("schema = 1", "schema = \"1\""), @r#"
    exit code 2
    error: templates/t.toml:1:10: invalid type: string "1", expected a whole number
    hint: `schema` is the number 1: schema = 1
    "#);
    insta::assert_snapshot!(replaced("{ dir = \"code\" }", "\"code\""), @r#"
    exit code 2
    error: templates/t.toml:5:11: invalid type: string "code", expected a table
    hint: `fixture` is a table: fixture = { dir = "helpdesk" } or { rows = "tickets.jsonl" }
    "#);
}

#[test]
fn steps() {
    let step = |id: &str, more: &str| format!("[[step]]\nid = \"{id}\"\nprompt = \"p\"\n{more}\n");
    insta::assert_snapshot!(
        Project::empty().with("templates/t.toml", "schema = 1\nname = \"t\"\n").failure(), @r#"
    exit code 2
    error: templates/t.toml:3:1: the template has no steps
    hint: add one: [[step]], id = "answer", prompt = "…"
    "#
    );
    insta::assert_snapshot!(of_steps(&(step("a", "") + &step("a", ""))), @"
    exit code 2
    error: templates/t.toml:9:6: duplicate step id `a`
    hint: step ids must be unique
    ");
    insta::assert_snapshot!(of_steps(&step("a b", "")), @"
    exit code 2
    error: templates/t.toml:5:6: `a b` cannot be a step's id
    hint: use letters, digits, `_` and `-`, starting with a letter or `_`; at most 64 characters
    ");
    insta::assert_snapshot!(of_steps(&step("", "")), @"
    exit code 2
    error: templates/t.toml:5:6: `` cannot be a step's id
    hint: use letters, digits, `_` and `-`, starting with a letter or `_`; at most 64 characters
    ");
    insta::assert_snapshot!(of_steps(&(step("plan", "") + &step("b", "needs = [\"plam\"]"))), @"
    exit code 2
    error: templates/t.toml:11:10: unknown step `plam` in `needs`
    hint: did you mean `plan`? steps: plan, b
    ");
    insta::assert_snapshot!(of_steps(&(step("a", "") + &step("b", "needs = [\"a\", \"a\"]"))), @"
    exit code 2
    error: templates/t.toml:11:15: `a` occurs twice in `needs`
    hint: list it once
    ");
    insta::assert_snapshot!(of_steps(&step("a", "needs = [\"a\"]")), @"
    exit code 2
    error: templates/t.toml:7:9: dependency cycle between steps: a -> a
    hint: an arrow points from a step to one that it needs: remove one of these dependencies
    ");
    let circle = step("a", "") + &step("b", "needs = [\"a\", \"d\"]");
    let circle = circle + &step("c", "needs = [\"b\"]") + &step("d", "needs = [\"c\"]");
    insta::assert_snapshot!(of_steps(&circle), @"
    exit code 2
    error: templates/t.toml:11:9: dependency cycle between steps: b -> d -> c -> b
    hint: an arrow points from a step to one that it needs: remove one of these dependencies
    ");
    let isolated = step("a", "") + &step("b", "needs = [\"a\"]") + &step("c", "");
    insta::assert_snapshot!(of_steps(&isolated), @"
    exit code 2
    error: templates/t.toml:13:6: the step `c` is not connected to any other
    hint: connect it through `needs`, or move it to a separate template
    ");
    insta::assert_snapshot!(of_steps(&step("a", "context = \"append\"")), @r#"
    exit code 2
    error: templates/t.toml:7:11: `context = "append"` continues the only step in `needs`, but `a` needs 0
    hint: name that step alone in `needs`, or leave `context` at "fresh"
    "#);
    let two = step("a", "") + &step("b", "");
    let two = two + &step("c", "needs = [\"a\", \"b\"]\ncontext = \"append\"");
    insta::assert_snapshot!(of_steps(&two), @r#"
    exit code 2
    error: templates/t.toml:16:11: `context = "append"` continues the only step in `needs`, but `c` needs 2
    hint: name that step alone in `needs`, or leave `context` at "fresh"
    "#);
    insta::assert_snapshot!(of_steps("[[step]]\nid = \"a\"\nprompt = \" \\n\"\n"), @"
    exit code 2
    error: templates/t.toml:6:10: the text is empty
    hint: say what the model is to do
    ");
}

#[test]
fn expressions() {
    let prompt = |text: &str| {
        of_steps(&format!(
            "[[step]]\nid = \"a\"\nprompt = \"p\"\n\n[[step]]\nid = \"b\"\nneeds = [\"a\"]\nprompt = '''\nfirst\n{text}'''\n\n\
             [[step]]\nid = \"c\"\nneeds = [\"b\"]\nprompt = \"q\"\n"
        ))
    };
    insta::assert_snapshot!(prompt("ä ${steps.a.text"), @"
    exit code 2
    error: templates/t.toml:13:3: unclosed `${`
    hint: close the expression; write `$${` for the text `${`
    ");
    insta::assert_snapshot!(prompt("ä ${ steps.aa.text }"), @"
    exit code 2
    error: templates/t.toml:13:12: unknown step `aa`
    hint: steps: a, b, c
    ");
    insta::assert_snapshot!(prompt("${steps.c.text}"), @r#"
    exit code 2
    error: templates/t.toml:13:9: the step `c` is read but is not a dependency
    hint: add "c" to the `needs` of the step `b`
    "#);
    insta::assert_snapshot!(prompt("${steps.b.text}"), @"
    exit code 2
    error: templates/t.toml:13:9: the step reads its own answer
    hint: a prompt can use only answers of steps that ended earlier
    ");
    insta::assert_snapshot!(prompt("${steps.a.answer}"), @"
    exit code 2
    error: templates/t.toml:13:11: a step has no `answer`
    hint: write `steps.a.text`: a step's answer is its `text`
    ");
    insta::assert_snapshot!(prompt("${HOME}"), @"
    exit code 2
    error: templates/t.toml:13:3: unknown variable `HOME`
    hint: `${…}` is an expression over `steps.<id>.text`; write `$${` for the text `${`
    ");
    insta::assert_snapshot!(prompt("${ steps.a.text | }"), @"
    exit code 2
    error: templates/t.toml:13:17: syntax error: unexpected end of input, expected identifier
    hint: `${…}` is an expression over `steps.<id>.text`; write `$${` for the text `${`
    ");
    insta::assert_snapshot!(prompt("{{ '${steps.a.text}' }}"), @"
    exit code 2
    error: templates/t.toml:13:5: syntax error: unexpected end of string
    hint: a `{{ … }}` or `{% … %}` cannot span a `${…}`: the text is split there first
    ");
    insta::assert_snapshot!(replaced("You review", "You review ${steps.plan.text}"), @"
    exit code 2
    error: templates/t.toml:6:26: `system` cannot contain `${…}`: it is rendered before the run
    hint: put it into a step's prompt; write `$${` for the text `${`
    ");
}

#[test]
fn variables() {
    insta::assert_snapshot!(replaced("row.task", "row.tsk"), @"
    exit code 2
    error: templates/t.toml:11:14: `row.tsk` is undefined (flow 1, row `late-fees`)
    hint: did you mean `row.task`? known here: row.id, row.task, fixture.text, fixture.files, flow.number; the row is templates/t.suite.jsonl:1
    ");
    insta::assert_snapshot!(replaced("row.task", "tsk"), @"
    exit code 2
    error: templates/t.toml:11:14: `tsk` is undefined (flow 1, row `late-fees`)
    hint: known here: row.id, row.task, fixture.text, fixture.files, flow.number; the row is templates/t.suite.jsonl:1
    ");
    insta::assert_snapshot!(replaced("fixture.text", "fixture.txt"), @"
    exit code 2
    error: templates/t.toml:7:4: `fixture.txt` is undefined (flow 1, row `late-fees`)
    hint: did you mean `fixture.text`? known here: row.id, row.task, fixture.text, fixture.files, flow.number; the row is templates/t.suite.jsonl:1
    ");
    insta::assert_snapshot!(replaced("fixture.text", "fixture.rows[0]"), @"
    exit code 2
    error: templates/t.toml:7:11: `fixture.rows` is undefined (flow 1, row `late-fees`)
    hint: did you mean `fixture.files`? known here: row.id, row.task, fixture.text, fixture.files, flow.number; the row is templates/t.suite.jsonl:1
    ");
    insta::assert_snapshot!(replaced("fixture = { dir = \"code\" }", ""), @"
    exit code 2
    error: templates/t.toml:7:4: `fixture` is undefined (flow 1, row `late-fees`)
    hint: known here: row.id, row.task, flow.number; the row is templates/t.suite.jsonl:1; the template has no `fixture`
    ");
    insta::assert_snapshot!(replaced("suite = \"t.suite.jsonl\"", ""), @"
    exit code 2
    error: templates/t.toml:11:14: `row.task` is undefined
    hint: known here: fixture.text, fixture.files, flow.number; the template has no `suite`
    ");
    insta::assert_snapshot!(replaced("row.task }}", "row.task | uper }}"), @"
    exit code 2
    error: templates/t.toml:11:25: filter uper is unknown (flow 1, row `late-fees`)
    hint: the syntax of `{{ … }}`: https://docs.rs/minijinja/latest/minijinja/syntax/
    ");
    insta::assert_snapshot!(replaced("row.task }}", "row.task }"), @"
    exit code 2
    error: templates/t.toml:11:23: syntax error: unexpected `}`, expected end of variable block
    hint: `{{ … }}` is a minijinja expression; write {{ '{{' }} for the text `{{`
    ");
    insta::assert_snapshot!(replaced("row.task }}", "row.task }}{% if %}"), @"
    exit code 2
    error: templates/t.toml:11:31: syntax error: unexpected end of block
    hint: `{{ … }}` is a minijinja expression; write {{ '{{' }} for the text `{{`
    ");
    insta::assert_snapshot!(replaced("row.task }} Plan it.", "row.note | default('') }}"), @"
    exit code 2
    error: templates/t.toml:11:11: the prompt is empty (flow 1, row `late-fees`)
    hint: every step needs a prompt for every row
    ");
    // Only the third row lacks it.
    insta::assert_snapshot!(replaced("row.task", "row.id"), @"
    exit code 2
    error: templates/t.toml:11:14: `row.id` is undefined (flow 3, row `3`)
    hint: known here: row.task, fixture.text, fixture.files, flow.number; the row is templates/t.suite.jsonl:3
    ");
}

#[test]
fn suites() {
    insta::assert_snapshot!(replaced("t.suite.jsonl", "t.suit.jsonl"), @"
    exit code 2
    error: templates/t.toml:4:9: there is no suite `t.suit.jsonl` (searched: templates/, the shipped templates)
    hint: did you mean `t.suite.jsonl`? suites: t.suite.jsonl
    ");
    insta::assert_snapshot!(replaced("t.suite.jsonl", "../t.suite.jsonl"), @"
    exit code 2
    error: templates/t.toml:4:9: the suite `../t.suite.jsonl` is outside of the template's folder
    hint: a suite is in the folder of its template: give its file name
    ");
    insta::assert_snapshot!(
        Project::new().with("templates/t.suite.jsonl", "{\"a\": 1}\n{\"a\": }\n").failure(), @r#"
    exit code 2
    error: templates/t.suite.jsonl:2:7: invalid JSON: expected value
    hint: each line is one JSON object, such as {"id": "late-fees", "task": "…"}
    "#
    );
    insta::assert_snapshot!(Project::new().with("templates/t.suite.jsonl", "").failure(), @"
    exit code 2
    error: templates/t.suite.jsonl:1:1: the suite has no rows
    hint: write one JSON object per line, or leave `suite` out of the template
    ");
}

#[test]
fn includes() {
    let with = |text: &str| {
        Project::new()
            .with("templates/t.toml", TEMPLATE.replacen("Plan it.", text, 1))
            .with("templates/rules.txt", "Be brief.\nSee {{ row.tsk }}.\n")
            .failure()
    };
    insta::assert_snapshot!(with("{% include 'rules.txt' %}"), @"
    exit code 2
    error: templates/rules.txt:2: `row.tsk` is undefined (flow 1, row `late-fees`)
    hint: did you mean `row.task`? known here: row.id, row.task, fixture.text, fixture.files, flow.number; the row is templates/t.suite.jsonl:1
    ");
    insta::assert_snapshot!(with("{% include 'rule.txt' %}"), @"
    exit code 2
    error: templates/t.toml:11:29: tried to include non-existing template 'rule.txt' (flow 1, row `late-fees`)
    hint: an included file must be in the template's folder, with its name quoted in the tag
    ");
    insta::assert_snapshot!(with("{% include 'ru' ~ 'les.txt' %}"), @"
    exit code 2
    error: templates/t.toml:11:29: tried to include non-existing template 'rules.txt' (flow 1, row `late-fees`)
    hint: an included file must be in the template's folder, with its name quoted in the tag
    ");
    insta::assert_snapshot!(with("{% include '../fixtures/code/b.py' %}"), @"
    exit code 2
    error: templates/t.toml:11:29: tried to include non-existing template '../fixtures/code/b.py' (flow 1, row `late-fees`)
    hint: an included file must be in the template's folder, with its name quoted in the tag
    ");
}

#[test]
fn recursive_includes_are_an_error() {
    let failure = Project::empty()
        .with(
            "templates/t.toml",
            template("system = \"{% include 'a.txt' %}\"", ""),
        )
        .with("templates/a.txt", "a{% include 'b.txt' %}")
        .with("templates/b.txt", "b{% include 'a.txt' %}")
        .failure();
    insta::assert_snapshot!(failure, @"
    exit code 2
    error: templates/a.txt:1: recursion limit exceeded
    hint: the syntax of `{{ … }}`: https://docs.rs/minijinja/latest/minijinja/syntax/
    ");
}

#[test]
fn no_flows() {
    let project = Project::new();
    insta::assert_snapshot!(project.report(expand(&project.request(0))), @"
    exit code 2
    error: at least one flow is needed
    hint: set NUM_FLOWS to a whole number of at least 1
    ");
}
