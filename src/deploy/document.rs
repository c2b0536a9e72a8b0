//! Pure: a TOML file, read strictly. What the file's JSON Schema does not allow is refused here, with
//! line and key, all of it and not only the first. So the schema that editors use and what is accepted
//! are the same thing.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value as Schema;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, Problems, did_you_mean};

/// Where the keys of a file stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    file: String,
    lines: BTreeMap<String, usize>,
}

impl Places {
    /// The file, as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The line of a key, or of the nearest table around it.
    pub fn line(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(line) = self.lines.get(key) {
                return Some(*line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// A problem with a key.
    pub fn problem(&self, key: impl Into<String>, message: impl Into<String>) -> Problem {
        let key = key.into();
        let line = self.line(&key);
        Problem { file: self.file.clone(), line, key, message: message.into(), hint: None }
    }
}

/// Reads a file's text.
///
/// # Errors
/// Everything in it that is no TOML, or that the schema does not allow.
pub fn read<T: DeserializeOwned>(
    file: &str,
    text: &str,
    schema: &str,
) -> Result<(T, Places), Problems> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let starts: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let line = |at: usize| starts.partition_point(|start| *start <= at) + 1;
    let mut reading = Reading {
        line: &line,
        places: Places { file: file.to_owned(), lines: BTreeMap::new() },
        problems: Vec::new(),
    };
    let told = |error: &toml::de::Error| Problem {
        file: file.to_owned(),
        line: Some(error.span().map_or(1, |span| line(span.start))),
        key: String::new(),
        message: error.message().to_owned(),
        hint: None,
    };
    Problems::none_of(errors.iter().map(told).collect())?;
    let schema: Schema = serde_json::from_str(schema).unwrap_or_default();
    let span = table.span();
    let root = Spanned::new(span.clone(), DeValue::Table(table.into_inner()));
    reading.check(&root, &schema, "");
    Problems::none_of(reading.problems)?;
    let places = reading.places;
    // What is left are numbers that are out of range.
    match T::deserialize(toml::de::ValueDeserializer::from(root)) {
        Ok(value) => Ok((value, places)),
        Err(error) => Err(told(&error).into()),
    }
}

/// A key below another one.
pub fn below(key: &str, name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let name = if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        format!("{name:?}")
    };
    if key.is_empty() { name } else { format!("{key}.{name}") }
}

struct Reading<'a> {
    line: &'a dyn Fn(usize) -> usize,
    places: Places,
    problems: Vec<Problem>,
}

impl Reading<'_> {
    fn refuse(&mut self, key: &str, message: String, hint: Option<String>) {
        let problem = self.places.problem(key, message).hint(hint);
        self.problems.push(problem);
    }

    fn check(&mut self, value: &Spanned<DeValue<'_>>, schema: &Schema, key: &str) {
        if !key.is_empty() {
            let line = || (self.line)(value.span().start);
            self.places.lines.entry(key.to_owned()).or_insert_with(line);
        }
        let alternatives = ["anyOf", "oneOf"].iter().find_map(|name| schema[name].as_array());
        if let Some(alternatives) = alternatives {
            return self.check_alternatives(value, alternatives, key);
        }
        let kind = kind(value.get_ref());
        if !fits(schema, kind) {
            let message = format!("is {}, but must be {}", article(kind), wanted(schema));
            return self.refuse(key, message, None);
        }
        match value.get_ref() {
            DeValue::Table(table) => self.check_table(table, schema, key),
            DeValue::Array(array) => {
                for (at, item) in array.iter().enumerate() {
                    self.check(item, &schema["items"], &format!("{key}[{at}]"));
                }
            }
            DeValue::String(text) => self.check_word(text, &words(schema), key),
            DeValue::Integer(number) => {
                let number = i64::from_str_radix(number.as_str(), number.radix()).ok();
                let least = schema["minimum"].as_i64();
                if let (Some(number), Some(least)) = (number, least)
                    && number < least
                {
                    self.refuse(key, format!("is {number}, but must be at least {least}"), None);
                }
            }
            DeValue::Boolean(_) | DeValue::Float(_) | DeValue::Datetime(_) => {}
        }
    }

    fn check_word(&mut self, given: &str, known: &[&str], key: &str) {
        if known.is_empty() || known.contains(&given) {
            return;
        }
        let hint = did_you_mean(given, known.iter().copied());
        self.refuse(key, format!("is {given:?}, but must be {}", or(known)), hint);
    }

    fn check_alternatives(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        alternatives: &[Schema],
        key: &str,
    ) {
        let words: Vec<&str> = alternatives.iter().flat_map(words).collect();
        if let (DeValue::String(text), true) = (value.get_ref(), words.len() >= alternatives.len())
        {
            return self.check_word(text, &words, key);
        }
        let kind = kind(value.get_ref());
        if let Some(schema) = alternatives.iter().find(|schema| fits(schema, kind)) {
            return self.check(value, schema, key);
        }
        let mut wanted: Vec<_> = alternatives.iter().map(wanted).collect();
        wanted.dedup();
        let message = format!("is {}, but must be {}", article(kind), wanted.join(" or "));
        self.refuse(key, message, None);
    }

    fn check_table(&mut self, table: &DeTable<'_>, schema: &Schema, key: &str) {
        let properties = schema["properties"].as_object();
        let others = &schema["additionalProperties"];
        for (name, value) in table {
            let own = below(key, name.get_ref());
            self.places.lines.insert(own.clone(), (self.line)(name.span().start));
            let property = properties.and_then(|properties| properties.get(&**name.get_ref()));
            match property {
                Some(property) => self.check(value, property, &own),
                None if others.is_object() => self.check(value, others, &own),
                None if others.as_bool() == Some(false) => {
                    let known = properties.into_iter().flatten().map(|(name, _)| name.as_str());
                    let names: Vec<&str> = known.clone().collect();
                    let hint = did_you_mean(name.get_ref(), known);
                    let hint = hint.or_else(|| Some(format!("known here: {}", names.join(", "))));
                    self.refuse(&own, "is not known".to_owned(), hint);
                }
                None => {}
            }
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Schema::as_str) {
            if !table.keys().any(|key| key.get_ref() == name) {
                self.refuse(&below(key, name), "is missing".to_owned(), None);
            }
        }
    }
}

/// What JSON Schema calls this kind of value.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "string",
        DeValue::Integer(_) => "integer",
        DeValue::Float(_) => "number",
        DeValue::Boolean(_) => "boolean",
        DeValue::Datetime(_) => "date",
        DeValue::Array(_) => "array",
        DeValue::Table(_) => "object",
    }
}

/// What people call it.
fn article(kind: &str) -> &'static str {
    match kind {
        "string" => "a text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "date" => "a date",
        "array" => "a list",
        _ => "a table",
    }
}

/// Whether a schema takes this kind of value; one that says nothing takes all.
fn fits(schema: &Schema, kind: &str) -> bool {
    match &schema["type"] {
        Schema::String(only) => only == kind || (only == "number" && kind == "integer"),
        Schema::Array(kinds) => kinds.iter().any(|one| one == kind),
        Schema::Null | Schema::Bool(_) | Schema::Number(_) | Schema::Object(_) => true,
    }
}

fn wanted(schema: &Schema) -> String {
    match &schema["type"] {
        Schema::String(only) => article(only).to_owned(),
        Schema::Array(kinds) => {
            let kinds = kinds.iter().filter_map(Schema::as_str).map(article);
            kinds.collect::<Vec<_>>().join(" or ")
        }
        Schema::Null | Schema::Bool(_) | Schema::Number(_) | Schema::Object(_) => {
            "something else".to_owned()
        }
    }
}

/// The words that a schema allows; none: any.
fn words(schema: &Schema) -> Vec<&str> {
    let constant = schema["const"].as_str();
    let several = schema["enum"].as_array().into_iter().flatten().filter_map(Schema::as_str);
    constant.into_iter().chain(several).collect()
}

fn or(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r#"{
        "type": "object", "additionalProperties": false, "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "count": {"type": "integer", "minimum": 1},
            "kind": {"oneOf": [{"const": "machine", "type": "string"}, {"const": "worker", "type": "string"}]},
            "mode": {"type": "string", "enum": ["on", "off"]},
            "who": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            "more": {"type": "object", "additionalProperties": {"type": "boolean"}}
        }
    }"#;

    fn problems(text: &str) -> String {
        let problems = read::<toml::Table>("f.toml", text, SCHEMA).unwrap_err();
        let told = |p: &Problem| format!("{p} [{}]", p.hint.as_deref().unwrap_or_default());
        problems.iter().map(told).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn all_that_a_schema_forbids_is_told_with_line_and_key() {
        let text = "\nnam = 1\ncount = 0\nkind = \"wroker\"\nmode = \"x\"\nwho = [\"a\", 2]\n\
                    [more]\n\"a b\" = 1\n";
        let expected = "f.toml, name: is missing []\n\
            f.toml, line 2, nam: is not known [did you mean \"name\"?]\n\
            f.toml, line 3, count: is 0, but must be at least 1 []\n\
            f.toml, line 4, kind: is \"wroker\", but must be \"machine\" or \"worker\" \
            [did you mean \"worker\"?]\n\
            f.toml, line 5, mode: is \"x\", but must be \"on\" or \"off\" []\n\
            f.toml, line 6, who[1]: is a whole number, but must be a text []\n\
            f.toml, line 8, more.\"a b\": is a whole number, but must be true or false []";
        assert_eq!(problems(text), expected);
        assert_eq!(
            problems("name = 'a'\nwho = 1"),
            "f.toml, line 2, who: is a whole number, but must be a text or a list []"
        );
        assert_eq!(
            problems("name = 'a'\nkind = 1"),
            "f.toml, line 2, kind: is a whole number, but must be a text []"
        );
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        let told = problems("name = 'a'\ncount = \nmode = \"on\"\nwho = \n");
        assert!(told.starts_with("f.toml, line 2: "), "{told}");
        assert!(told.contains("f.toml, line 4: "), "{told}");
        let twice = problems("name = 'a'\nname = 'b'\n");
        assert!(twice.starts_with("f.toml, line 2: "), "{twice}");
    }

    #[test]
    fn what_fits_is_read_and_its_lines_are_known() {
        let text = "name = 'a'\ncount = 0x10\nwho = [\n  'a',\n  'b',\n]\n";
        let (table, places) = read::<toml::Table>("f.toml", text, SCHEMA).unwrap();
        assert_eq!(table["count"].as_integer(), Some(16));
        assert_eq!(places.line("who[1]"), Some(5));
        assert_eq!(places.line("who[7].x"), Some(3));
        assert_eq!(places.line("nothing"), None);
    }
}
