//! The records of real (scripted) runs are what `docs/*.schema.json` say.

use crate::common::{Workspace, run};
use serde_json::{Map, Value};

/// Checks a value against the part of JSON Schema 2020-12 that the schemas use, and fails on any
/// keyword that it does not know, so that no rule is passed over. Objects hold no other members than
/// those described.
struct Validator<'a> {
    root: &'a Value,
    problems: Vec<String>,
}

impl Validator<'_> {
    fn problems(root: &Value, value: &Value) -> Vec<String> {
        let mut validator = Validator {
            root,
            problems: Vec::new(),
        };
        validator.check(root, value, "");
        validator.problems
    }

    fn says(&self, schema: &Value, value: &Value, at: &str) -> Vec<String> {
        let mut inner = Validator {
            root: self.root,
            problems: Vec::new(),
        };
        inner.check(schema, value, at);
        inner.problems
    }

    fn check(&mut self, schema: &Value, value: &Value, at: &str) {
        let rules = match schema {
            Value::Bool(true) => return,
            Value::Object(rules) => rules,
            other => panic!("not a schema: {other}"),
        };
        for (keyword, rule) in rules {
            let fine = match keyword.as_str() {
                "$schema" | "$defs" | "title" | "description" | "default" | "format" => true,
                "properties" | "items" | "additionalProperties" => true,
                "type" => types(rule).iter().any(|name| is(name, value)),
                "const" => value == rule,
                "enum" => rule.as_array().expect("values").contains(value),
                "minimum" => value.as_f64() >= rule.as_f64() || !value.is_number(),
                "required" => (value.as_object()).is_none_or(|members| {
                    let names = rule.as_array().expect("names");
                    names
                        .iter()
                        .all(|name| members.contains_key(name.as_str().expect("a name")))
                }),
                "$ref" => {
                    let path = rule.as_str().expect("a path").trim_start_matches('#');
                    let target = self.root.pointer(path).expect("a definition");
                    let says = self.says(target, value, at);
                    self.problems.extend(says);
                    true
                }
                "anyOf" | "oneOf" => {
                    let ways = rule.as_array().expect("schemas");
                    ways.iter().any(|way| self.says(way, value, at).is_empty())
                }
                other => panic!("{at}: unknown keyword {other}"),
            };
            if !fine {
                self.problems
                    .push(format!("{at}: {keyword} {rule}: {value}"));
            }
        }
        match value {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Some(schema) = rules.get("items") {
                        self.check(schema, item, &format!("{at}/{index}"));
                    }
                }
            }
            Value::Object(members) => self.members(rules, members, at),
            _ => {}
        }
    }

    fn members(&mut self, rules: &Map<String, Value>, members: &Map<String, Value>, at: &str) {
        let open = rules.get("additionalProperties");
        for (name, member) in members {
            let at = format!("{at}/{name}");
            match rules
                .get("properties")
                .and_then(|known| known.get(name))
                .or(open)
            {
                Some(schema) => self.check(schema, member, &at),
                None if rules.contains_key("properties") => {
                    self.problems.push(format!("{at}: not described"));
                }
                None => {}
            }
        }
    }
}

fn types(rule: &Value) -> Vec<&str> {
    match rule {
        Value::String(name) => vec![name],
        rule => (rule.as_array().expect("types").iter())
            .map(|name| name.as_str().expect("a type"))
            .collect(),
    }
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("unknown type {other}"),
    }
}

fn schema(name: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    serde_json::from_str(&std::fs::read_to_string(path).expect("readable")).expect("JSON")
}

/// Where a run's record is not what the schema says.
pub(crate) fn problems_of_run(record: &Value) -> Vec<String> {
    Validator::problems(&schema("run.schema.json"), record)
}

#[test]
fn records_are_what_the_schemas_say() {
    let (run_schema, step_schema) = (schema("run.schema.json"), schema("steps.schema.json"));
    for (mode, script) in [
        ("scripted", crate::common::SCRIPT.to_owned()),
        (
            "scripted",
            format!(
                "{}{{\"flow\": 2, \"step\": \"executor\", \"fail\": \"no\"}}\n",
                crate::common::SCRIPT
            ),
        ),
        ("both", crate::common::SCRIPT.to_owned()),
    ] {
        let workspace = Workspace::new();
        workspace.write("templates/chain.script.jsonl", script);
        let mut command = workspace.scripted();
        command
            .env("MODE", mode)
            .env("NUM_FLOWS", "3")
            .env("GPU_POWER", "100");
        if mode == "both" {
            command.env("SCRIPT", workspace.file("templates/chain.script.jsonl"));
        }
        run(&mut command);
        let record = workspace.record();
        assert_eq!(Validator::problems(&run_schema, &record), [] as [String; 0]);
        let positions = record["totals"]["positions"].as_array().expect("ended");
        assert_eq!(positions.len(), if mode == "both" { 6 } else { 3 });
        let steps = workspace.steps();
        assert!(!steps.is_empty());
        for step in &steps {
            assert_eq!(Validator::problems(&step_schema, step), [] as [String; 0]);
        }
        // The validator does find what is wrong.
        for (name, wrong) in [("latency_ms", Value::Null), ("surplus", Value::Null)] {
            let mut step = steps[0].clone();
            step[name] = wrong;
            assert_eq!(Validator::problems(&step_schema, &step).len(), 1, "{name}");
        }
    }
}

#[test]
fn so_are_those_of_a_server_and_of_joined_shards() {
    let (run_schema, step_schema) = (schema("run.schema.json"), schema("steps.schema.json"));
    let server = crate::common::server::Server::sound();
    let workspace = Workspace::new();
    for shard in ["1/2", "2/2"] {
        let printed = run(workspace
            .scripted()
            .envs([("MODE", "remote"), ("NUM_FLOWS", "3"), ("SHARD", shard)])
            .env("ENDPOINT", server.endpoint())
            .env("OUT", format!("parts/{shard}").replace('/', "-")));
        assert_eq!(printed.code, 0, "{}", printed.err);
    }
    let parts = ["parts-1-2", "parts-2-2"].map(|out| workspace.runs(out).remove(0));
    for part in &parts {
        let text = std::fs::read_to_string(part.join("run.json")).expect("readable");
        let record = serde_json::from_str(&text).expect("JSON");
        assert_eq!(Validator::problems(&run_schema, &record), [] as [String; 0]);
    }
    let printed = run(workspace.flowbench(&["merge"]).args(&parts));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(
        Validator::problems(&run_schema, &workspace.record()),
        [] as [String; 0]
    );
    assert_eq!(workspace.record()["totals"]["remote"]["requests"], 9);
    let steps = workspace.steps();
    assert_eq!(steps.len(), 9);
    for step in &steps {
        assert_eq!(Validator::problems(&step_schema, step), [] as [String; 0]);
    }
}

#[test]
fn the_schemas_tell_the_formulas() {
    let text = schema("steps.schema.json").to_string() + &schema("run.schema.json").to_string();
    for formula in [
        "(E2EL − TTFT) / (n − 1)",
        "1000 / TPOT",
        "TTFT − queue wait",
    ] {
        assert!(text.contains(formula), "{formula}");
    }
}
