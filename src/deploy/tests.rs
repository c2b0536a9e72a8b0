//! The schemas of the files are those of the types, and the examples fit them.

use std::path::Path;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::plan::Isolation;
use super::planning::{self, Request};
use super::project_file::ProjectFile;
use super::targets::TargetsFile;
use super::{load, project, targets};

/// Set to write the schemas: `BATON_UPDATE_SCHEMA=1 cargo test --lib deploy::tests`.
const UPDATE: &str = "BATON_UPDATE_SCHEMA";

fn schema<T: JsonSchema>() -> String {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    without_null(&mut schema);
    format!("{}\n", serde_json::to_string_pretty(&schema).unwrap())
}

/// TOML has no null: what may be left out is not required.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            if let Some(Value::Array(kinds)) = object.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [only] = kinds.as_slice() {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(alternatives)) = object.get_mut("anyOf") {
                alternatives.retain(|schema| schema["type"] != "null");
                if let [only] = alternatives.as_slice() {
                    let mut only = only.clone();
                    object.remove("anyOf");
                    // The key's own description counts, not that of its type.
                    for (name, value) in only.as_object_mut().unwrap() {
                        object.entry(name.clone()).or_insert(value.take());
                    }
                }
            }
            object.values_mut().for_each(without_null);
        }
        Value::Array(array) => array.iter_mut().for_each(without_null),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn the_schemas_are_those_of_the_types() {
    for (name, committed, made) in [
        ("deploy.json", project::SCHEMA, schema::<ProjectFile>()),
        ("targets.json", targets::SCHEMA, schema::<TargetsFile>()),
    ] {
        if std::env::var_os(UPDATE).is_some() {
            let path = Path::new("share/schema").join(name);
            crate::durable::replace_file(&path, made.as_bytes(), 0o644).unwrap();
        } else {
            assert!(committed == made, "{name} is old: {UPDATE}=1 cargo test --lib deploy::tests");
        }
    }
}

/// Which of the five projects bypass, by environment: the table of the example's README.
#[test]
fn the_five_projects_plan_what_their_readme_says() {
    let folder = Path::new("examples/five-projects");
    let machines = load::targets(&folder.join("targets.toml")).unwrap();
    let bypass = Isolation::Bypass { at_most: None };
    for (name, test, live) in [
        ("a", bypass, bypass),
        ("b", bypass, Isolation::Exclusive),
        ("c", Isolation::Exclusive, Isolation::Exclusive),
        ("d", bypass, bypass),
        ("e", bypass, Isolation::Exclusive),
    ] {
        let mut project = load::project(&folder.join(name).with_extension("toml")).unwrap();
        assert_eq!(project.name, name.to_uppercase());
        for (environment, expected) in [("Test", test), ("Live", live)] {
            let request = Request { environment: environment.to_owned(), ..Request::default() };
            load::values(&mut project, &request, |_| None).unwrap();
            let plan = planning::plan(&project, &machines, &request).unwrap();
            let jobs: Vec<_> = plan.steps().flat_map(|step| &step.jobs).collect();
            assert_eq!(jobs.len(), 3, "{name}");
            assert!(jobs.iter().all(|job| job.isolation == expected), "{name} in {environment}");
            assert!(plan.remarks.is_empty(), "{:?}", plan.remarks);
        }
    }
}
