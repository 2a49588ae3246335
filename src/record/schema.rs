//! The JSON schemas in `docs/`, derived from the structs; doc comments become descriptions. After a change,
//! `UPDATE_SCHEMAS=1 cargo test --lib schema` updates them.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use super::{RunRecord, StepRecord};

/// The schema of a record, without rustdoc's link brackets in descriptions.
fn schema<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    plain_links(&mut schema);
    schema
}

fn plain_links(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(text) if key == "description" => {
                        *text = text
                            .replace("[`", "`")
                            .replace("`]", "`")
                            .replace('\n', " ");
                    }
                    value => plain_links(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain_links),
        _ => {}
    }
}

fn check(name: &str, schema: &Value) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    let text = format!("{}\n", serde_json::to_string_pretty(schema).unwrap());
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/{name} is not the schema of the records: UPDATE_SCHEMAS=1 cargo test --lib schema"
    );
}

#[test]
fn the_schemas_in_docs_are_those_of_the_records() {
    check("run.schema.json", &schema::<RunRecord>());
    check("steps.schema.json", &schema::<StepRecord>());
}
