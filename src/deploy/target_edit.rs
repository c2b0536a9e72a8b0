//! Pure: adds and removes targets in the text of `targets.toml`, and leaves its order and comments.

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, Value};

use super::plan::TargetKind;
use super::problem::Problems;
use super::targets::{Target, Targets};

/// Why a file is not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// What is in it is wrong, or would be.
    #[error(transparent)]
    Problems(#[from] Problems),
    /// The editor can't read it.
    #[error("targets can't be edited")]
    Syntax(#[from] toml_edit::TomlError),
    /// A target is there already, with other values.
    #[error("target {0:?} is there already with other values")]
    Exists(String),
    /// A target is not known.
    #[error("target {0:?} is not known")]
    Unknown(String),
}

/// The text with a target; the same one again changes nothing.
///
/// # Errors
/// When the name belongs to a target with other values, or something about it is not allowed.
pub fn add(file: &str, text: &str, target: &Target) -> Result<String, EditError> {
    let known = Targets::parse(file, text)?;
    if let Some(known) = known.named(&target.name) {
        let same = known == target;
        return if same {
            Ok(text.to_owned())
        } else {
            Err(EditError::Exists(target.name.clone()))
        };
    }
    let mut document: DocumentMut = text.parse()?;
    let all = document.entry("targets").or_insert_with(|| {
        let mut all = Table::new();
        // Only the tables of the targets themselves are written.
        all.set_implicit(true);
        Item::Table(all)
    });
    let fields = fields(target);
    if let Some(all) = all.as_inline_table_mut() {
        all.insert(&target.name, Value::InlineTable(fields.into_iter().collect()));
    } else {
        let mut table = Table::new();
        table.extend(fields);
        if !text.is_empty() {
            table.decor_mut().set_prefix("\n");
        }
        all[target.name.as_str()] = Item::Table(table);
    }
    let text = document.to_string();
    Targets::parse(file, &text)?;
    Ok(text)
}

/// The text without a target.
///
/// # Errors
/// When it is not there.
pub fn remove(file: &str, text: &str, name: &str) -> Result<String, EditError> {
    Targets::parse(file, text)?;
    let mut document: DocumentMut = text.parse()?;
    let all = document.get_mut("targets").and_then(Item::as_table_like_mut);
    let removed = all.and_then(|all| all.remove(name));
    removed.ok_or_else(|| EditError::Unknown(name.to_owned()))?;
    Ok(document.to_string())
}

/// What is said about it: what is as usual is left out.
fn fields(target: &Target) -> Vec<(&'static str, Value)> {
    let list = |words: &[String]| Value::Array(words.iter().map(String::as_str).collect::<Array>());
    let mut fields = vec![
        ("address", Value::from(target.address.as_str())),
        ("fingerprint", Value::from(target.fingerprint.to_string())),
    ];
    if target.kind == TargetKind::Worker {
        fields.push(("kind", Value::from("worker")));
    }
    for (name, words) in [
        ("environments", &target.environments),
        ("roles", &target.roles),
        ("tenants", &target.tenants),
        ("interpreters", &target.interpreters),
    ] {
        if !words.is_empty() {
            fields.push((name, list(words)));
        }
    }
    if let Some(at_most) = target.limits.at_most {
        let limits: InlineTable =
            [("at_most", Value::from(i64::from(at_most.get())))].into_iter().collect();
        fields.push(("limits", Value::InlineTable(limits)));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::targets::Limits;
    use crate::trust::Fingerprint;

    fn target(name: &str) -> Target {
        Target {
            name: name.to_owned(),
            address: format!("{name}:10950"),
            fingerprint: Fingerprint::of(b"x"),
            kind: TargetKind::Worker,
            environments: vec!["Test".to_owned()],
            roles: vec!["web".to_owned(), "iis".to_owned()],
            tenants: Vec::new(),
            interpreters: Vec::new(),
            limits: Limits { at_most: std::num::NonZeroU32::new(4), ..Limits::default() },
        }
    }

    #[test]
    fn order_and_comments_stay() {
        let fingerprint = Fingerprint::of(b"y");
        let text = format!(
            "# ours\n\n[targets.web-2] # the old one\naddress = \"web-2:1\"   # rack 7\n\
             fingerprint = \"{fingerprint}\"\n\n# last\n[targets.db]\naddress = \"db:1\"\n\
             fingerprint = \"{fingerprint}\"\n# end\n"
        );
        let added = add("t.toml", &text, &target("app")).unwrap();
        assert!(added.starts_with(text.trim_end_matches("# end\n")), "{added}");
        let targets = Targets::parse("t.toml", &added).unwrap();
        assert_eq!(targets.named("app"), Some(&target("app")));
        let names: Vec<_> = targets.iter().map(|target| target.name.as_str()).collect();
        assert_eq!(names, ["web-2", "db", "app"]);
        // The same one again changes nothing; another one of this name is refused.
        assert_eq!(add("t.toml", &added, &target("app")).unwrap(), added);
        let other = Target { address: "x:1".to_owned(), ..target("app") };
        assert!(matches!(add("t.toml", &added, &other), Err(EditError::Exists(_))));
        let removed = remove("t.toml", &added, "web-2").unwrap();
        assert!(
            removed.contains("# last\n[targets.db]") && !removed.contains("rack 7"),
            "{removed}"
        );
        assert!(matches!(remove("t.toml", &removed, "web-2"), Err(EditError::Unknown(_))));
    }

    #[test]
    fn a_file_that_is_empty_or_of_one_line_each_can_be_edited() {
        let first = add("t.toml", "", &target("a")).unwrap();
        assert!(first.starts_with("[targets.a]\n"), "{first}");
        let both = add("t.toml", &first, &target("b")).unwrap();
        assert!(both.contains("\n\n[targets.b]\n"), "{both}");
        assert_eq!(Targets::parse("t.toml", &both).unwrap().iter().count(), 2);
        let fingerprint = Fingerprint::of(b"y");
        let inline =
            format!("targets = {{ z = {{ address = 'z:1', fingerprint = '{fingerprint}' }} }}\n");
        let both = add("t.toml", &inline, &target("a")).unwrap();
        assert_eq!(Targets::parse("t.toml", &both).unwrap().iter().count(), 2);
    }

    #[test]
    fn what_is_not_allowed_is_not_written() {
        let bad = Target { name: "a b".to_owned(), ..target("a") };
        assert!(matches!(add("t.toml", "", &bad), Err(EditError::Problems(_))));
        assert!(matches!(add("t.toml", "targets = 1", &bad), Err(EditError::Problems(_))));
        assert!(matches!(remove("t.toml", "", "a"), Err(EditError::Unknown(_))));
    }
}
