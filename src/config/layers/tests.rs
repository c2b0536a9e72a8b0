use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::config::{Retention, Shape, TEMPLATE};

/// Reads a text, variables and the flag `--listen`.
fn read(
    text: &str,
    variables: &[(&str, &str)],
    listen: Option<&str>,
) -> Result<Layers, ConfigError> {
    let root = tempfile::tempdir().unwrap();
    crate::durable::replace_file(&root.path().join("agent.toml"), text.as_bytes(), 0o600).unwrap();
    let overrides = Overrides { listen: listen.map(str::to_owned), name: None };
    let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    Sources::of(root.path(), overrides).read_with(variables.collect::<Vec<_>>())
}

fn file(text: &str) -> Result<Config, ConfigError> {
    read(text, &[], None).map(|layers| (*layers.config).clone())
}

/// What is wrong, without the folder's name.
fn problems(error: &ConfigError) -> Vec<String> {
    let ConfigError::Invalid(problems) = error else { panic!("{error:?}") };
    let text = |problem: &Problem| {
        let text = problem.to_string();
        text.rsplit_once("/agent.toml, ").map_or(text.clone(), |(_, rest)| rest.to_owned())
    };
    problems.iter().map(text).collect()
}

/// A value of each key that is not its default, as a variable says it and as TOML.
fn examples() -> Vec<(&'static str, &'static str, &'static str)> {
    let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    vec![
        ("name", "web-7", "\"web-7\""),
        ("listen", "none", "\"none\""),
        ("queue_length", "7", "7"),
        ("max_output_bytes", "8", "8"),
        ("min_free_bytes", "9", "9"),
        ("grace", "90s", "\"1m30s\""),
        ("stop_wait", "2m", "\"2m\""),
        ("reboot_command", "systemctl  reboot", "[\"systemctl\", \"reboot\"]"),
        ("files.max_file_bytes", "10", "10"),
        ("files.min_free_bytes", "11", "11"),
        ("files.max_transfers", "12", "12"),
        (
            "files.roots",
            "{ a = { path = \"/srv\", access = \"read\" } }",
            "{ a = { access = \"read\", path = \"/srv\" } }",
        ),
        ("retention.max_age", "none", "\"none\""),
        ("retention.max_scripts", "13", "13"),
        ("retention.max_bytes", "14", "14"),
        ("retention.min_age", "1h", "\"1h\""),
        ("upgrade.keys", key, Box::leak(format!("[\"{key}\"]").into_boxed_str())),
        ("upgrade.health_limit", "45s", "\"45s\""),
    ]
}

/// The template with every example in place: each key set to its default.
fn uncommented() -> String {
    let line = |line: &str| {
        let bare =
            line.strip_prefix('#').filter(|rest| rest.contains(" = ") && !rest.starts_with(' '));
        bare.unwrap_or(line).to_owned()
    };
    let lines = TEMPLATE.lines().map(line).filter(|line| !line.starts_with("name"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn no_file_and_the_template_are_the_defaults() {
    let root = tempfile::tempdir().unwrap();
    let none = Sources::of(root.path(), Overrides::default()).read_with([]).unwrap();
    assert_eq!(*none.config, Config::default());
    assert_eq!(file(TEMPLATE).unwrap(), Config::default());
    // The values in the comments are the defaults too.
    assert_eq!(file(&uncommented()).unwrap(), Config::default());
}

#[test]
fn the_template_says_every_key_and_no_other() {
    let layers = read(&uncommented(), &[], None).unwrap();
    let said = |key: &&Key| matches!(layers.origin(key), Origin::File { .. });
    let said: BTreeSet<&str> = Key::all().iter().filter(said).map(|key| key.name).collect();
    let mut expected: BTreeSet<&str> = Key::all().iter().map(|key| key.name).collect();
    // Its default is this machine's.
    assert!(expected.remove("name") && TEMPLATE.contains("\n#name = "));
    assert_eq!(said, expected);
}

#[test]
fn every_key_is_overridden_by_its_variable_and_by_nothing_else() {
    let names: Vec<_> = examples().iter().map(|(name, ..)| *name).collect();
    assert_eq!(names, Key::all().iter().map(|key| key.name).collect::<Vec<_>>());
    let mut variables = BTreeSet::new();
    for ((_, text, shown), key) in examples().into_iter().zip(Key::all()) {
        let variable = key.variable();
        let layers = read("", &[(&variable, text)], None).unwrap();
        assert_eq!(key.value(&layers.config), shown, "{variable}");
        assert_eq!(*layers.origin(key), Origin::Variable(variable.clone()));
        assert_ne!(*layers.config, Config::default(), "{variable}");
        for other in Key::all().iter().filter(|other| other.name != key.name) {
            assert_eq!(other.value(&layers.config), other.value(&Config::default()), "{variable}");
            assert_eq!(*layers.origin(other), Origin::Default);
        }
        assert!(variables.insert(variable));
    }
}

/// So that no field is left out: a configuration in which every key has another value differs in each.
#[test]
fn the_keys_are_all_that_a_configuration_is_made_of() {
    let examples = examples();
    let set = examples.iter().zip(Key::all()).map(|((_, text, _), key)| (key.variable(), *text));
    let set: Vec<_> = set.collect();
    let set: Vec<_> = set.iter().map(|(variable, text)| (variable.as_str(), *text)).collect();
    let config = Arc::unwrap_or_clone(read("", &set, None).unwrap().config);
    let Config {
        name,
        listen,
        queue_length,
        max_output_bytes,
        min_free_bytes,
        grace,
        files:
            crate::config::files::Files { roots, max_file_bytes, min_free_bytes: free, max_transfers },
        reboot_command,
        retention: Retention { max_age, max_scripts, max_bytes, min_age },
        stop_wait,
        upgrade: crate::config::Upgrade { keys, health_limit },
    } = Config::default();
    assert!(config.name != name && config.listen != listen && config.grace != grace);
    assert!(config.queue_length != queue_length && config.max_output_bytes != max_output_bytes);
    assert!(config.min_free_bytes != min_free_bytes && config.stop_wait != stop_wait);
    assert!(config.files.roots != roots && config.files.max_file_bytes != max_file_bytes);
    assert!(config.files.min_free_bytes != free && config.files.max_transfers != max_transfers);
    assert!(config.reboot_command != reboot_command && config.retention.max_age != max_age);
    assert!(config.retention.max_scripts != max_scripts);
    assert!(config.retention.max_bytes != max_bytes && config.retention.min_age != min_age);
    assert!(config.upgrade.keys != keys && config.upgrade.health_limit != health_limit);
}

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let listen = Key::named("listen").unwrap();
    let text = "\nlisten = \"127.0.0.1:1\"\n";
    let variable = [("BATON_LISTEN", "127.0.0.1:2")];
    let layers = read(text, &[], None).unwrap();
    assert!(matches!(layers.origin(listen), Origin::File { line: 2, .. }));
    let layers = read(text, &variable, None).unwrap();
    assert_eq!(listen.value(&layers.config), "\"127.0.0.1:2\"");
    let layers = read(text, &variable, Some("none")).unwrap();
    assert_eq!(
        (layers.config.listen, layers.origin(listen).to_string()),
        (None, "--listen".into())
    );
    // Empty counts as unset.
    let layers = read(text, &[("BATON_LISTEN", "")], None).unwrap();
    assert_eq!(listen.value(&layers.config), "\"127.0.0.1:1\"");
}

#[test]
fn a_bad_value_names_its_line_its_key_and_the_rule() {
    for (text, told) in [
        ("listen = \"here\"", "listen = \"here\": must be ADDRESS:PORT"),
        ("listen = 1", "listen = 1: must be a text"),
        ("queue_length = 0", "queue_length = 0: must be 1 to 100000"),
        ("queue_length = \"a\"", "queue_length = \"a\": must be a number"),
        ("max_output_bytes = -1", "max_output_bytes = -1: must not be negative"),
        ("grace = \"soon\"", "grace = \"soon\": "),
        ("grace = \"2d\"", "grace = \"2d\": must be at most 1 day"),
        ("stop_wait = \"2d\"", "stop_wait = \"2d\": must be at most 1 day"),
        ("name = \" \"", "name = \" \": must not be empty"),
        ("reboot_command = [\"\"]", "reboot_command = [\"\"]: names no program"),
        ("reboot_command = \"x\"", "reboot_command = \"x\": must be a list"),
        ("files.min_free_bytes = -1", "files.min_free_bytes = -1: must not"),
        ("files.max_file_bytes = -1", "files.max_file_bytes = -1: must not"),
        ("files.max_transfers = 0", "files.max_transfers = 0: must be 1 to 1000"),
        ("files.roots = {\"a/b\" = 1}", "files.roots.a/b = 1: "),
        ("files.roots = 1", "files.roots = 1: must be a table"),
        ("retention.max_age = \"soon\"", "retention.max_age = \"soon\": "),
        ("retention.max_age = \"1m\"", "is less than retention.min_age, which is 10m"),
        ("retention.min_age = \"x\"", "retention.min_age = \"x\": "),
        ("retention.max_scripts = -1", "must be 0 to 1000000"),
        ("retention.max_bytes = -1", "retention.max_bytes = -1: must not"),
        ("upgrade.health_limit = \"0s\"", "must not be zero"),
        ("upgrade.keys = [\"RWQ\"]", "\"RWQ\" is no public key of minisign"),
        ("upgrade = 1", "`upgrade` is a table: [upgrade]"),
        ("queue = 1", "unknown key `queue`"),
        ("queue_length = 99999999999999999999", "line 2: "),
    ] {
        let error = file(&format!("\n{text}\n")).unwrap_err();
        let told_all = problems(&error);
        assert!(told_all.len() == 1 && told_all[0].contains(told), "{text}: {told_all:?}");
        assert!(told_all[0].starts_with("line 2: "), "{text}: {told_all:?}");
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once_and_in_the_order_of_lines() {
    let text = "\
queue_lenght = 5
grace = \"soon\"
[files]
max_transfers = 0
[files.roots.good]
path = \"x\"
access = \"read\"
[files.roots.bad]
path = \"x\"
access = \"all\"
[retention]
max_agee = \"1d\"
";
    let variables = [("BATON_QUEUE_LENGTH", "many"), ("BATON_UPGRADE_KEYS", "x,y")];
    let error = read(text, &variables, Some("here")).unwrap_err();
    let told = problems(&error);
    for (at, expected) in [
        "line 1: unknown key `queue_lenght`",
        "line 2: grace",
        "line 4: files.max_transfers",
        "line 8: files.roots.bad = { access = \"all\", path = \"x\" }: unknown variant `all`",
        "line 12: unknown key `retention.max_agee`",
        "BATON_QUEUE_LENGTH = \"many\": must be a number",
        "BATON_UPGRADE_KEYS = [\"x\", \"y\"]: \"x\" is no public key",
        "--listen = \"here\": must be",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(told[at].starts_with(expected), "{at}: {told:#?}");
    }
    assert_eq!(told.len(), 8);
    let ConfigError::Invalid(found) = error else { panic!() };
    let hints: Vec<_> = found.iter().filter_map(|problem| problem.hint.as_deref()).collect();
    assert_eq!(hints, ["did you mean \"queue_length\"?", "did you mean \"retention.max_age\"?"]);
}

#[test]
fn what_is_no_toml_names_each_line_and_nothing_that_follows_from_it() {
    let error = file("grace = \"10s\nqueue_length = 0\nname = = 2\n").unwrap_err();
    let told = problems(&error);
    assert!(told.len() == 2 && told[0].starts_with("line 1: "), "{told:?}");
    assert!(told[1].starts_with("line 3: "), "{told:?}");
}

#[test]
fn lists_and_tables_of_the_environment_may_be_empty_or_toml() {
    let text = "reboot_command = [\"reboot\"]";
    let command = |value| {
        let layers = read(text, &[("BATON_REBOOT_COMMAND", value)], None).unwrap();
        layers.config.reboot_command.clone()
    };
    assert_eq!(command("[]"), Vec::<String>::new());
    assert_eq!(command("[\"sh\", \"-c\", \"a b\"]"), ["sh", "-c", "a b"]);
    let layers = read("", &[("BATON_FILES_ROOTS", "{}")], None).unwrap();
    assert!(layers.config.files.roots.is_empty());
    let error = read("", &[("BATON_FILES_ROOTS", "{ a = {} }")], None).unwrap_err();
    let told = "BATON_FILES_ROOTS: files.roots.a = {}: missing field `path`";
    assert_eq!(problems(&error), [told]);
    let error = read("", &[("BATON_FILES_ROOTS", "{")], None).unwrap_err();
    assert!(problems(&error)[0].starts_with("BATON_FILES_ROOTS = \"{\": is no TOML"), "{error}");
}

#[test]
fn a_variable_that_looks_like_a_key_s_is_told_and_no_other_is() {
    let mistyped = |name: &str| read("", &[(name, "1")], None).unwrap().mistyped;
    for (name, meant) in [
        ("BATON_QUEUE_LENGHT", "BATON_QUEUE_LENGTH"),
        ("BATON_RETENTION_MAXAGE", "BATON_RETENTION_MAX_AGE"),
        ("BATON_GRACE_", "BATON_GRACE"),
        ("BATON_STATE_DIRR", "BATON_STATE_DIR"),
    ] {
        let hint = format!("did you mean {meant}?");
        assert_eq!(mistyped(name), [(name.to_owned(), hint)]);
    }
    for name in super::super::environment::known() {
        assert_eq!(mistyped(name), [], "{name}");
    }
    for name in
        ["BATON_LABEL_NAME", "BATON_TEST_NAME", "BATON_MUTEX_FENCE_LOG", "BATON_SOMETHING", "NAME"]
    {
        assert_eq!(mistyped(name), [], "{name}");
    }
}

/// Each word `BATON_…` of the source, but for what is mistyped on purpose, is a key's, or is known to be none.
#[test]
fn no_variable_of_the_source_is_taken_for_a_mistake() {
    let mut folders = vec![PathBuf::from("src"), "tests".into(), "share".into()];
    let mistyped_on_purpose = ["tests/config.rs", "tests/doctor.rs"].map(Path::new);
    let mut seen = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.starts_with("src/config") && !mistyped_on_purpose.contains(&&*path) {
                let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
                let parts = text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
                seen.extend(parts.filter(|word| word.starts_with("BATON_")).map(str::to_owned));
            }
        }
    }
    assert!(seen.len() > 20, "{seen:?}");
    for name in seen {
        let mistyped = Environment::read([(name.clone().into(), "1".into())]).mistyped;
        assert_eq!(mistyped, [], "{name}");
    }
}

#[test]
fn what_a_reload_can_t_change_stays_as_it_is_and_is_named() {
    let old = read("listen = \"none\"\ngrace = \"1s\"", &[], None).unwrap();
    let new =
        read("\nlisten = \"127.0.0.1:1\"\nqueue_length = 3\ngrace = \"1s\"", &[], None).unwrap();
    let (next, changes) = old.reloaded(&new);
    let change =
        |key, old: &str, new: &str| Change { key, old: old.to_owned(), new: new.to_owned() };
    assert_eq!(changes.applied, [change("queue_length", "1000", "3")]);
    assert_eq!(changes.needs_restart, [change("listen", "\"none\"", "\"127.0.0.1:1\"")]);
    assert_eq!(changes.unchanged, Key::all().len() - 2);
    assert_eq!((next.config.listen, next.config.queue_length), (None, 3));
    let line = |layers: &Layers, key| match layers.origin(Key::named(key).unwrap()) {
        Origin::File { line, .. } => *line,
        other @ (Origin::Default | Origin::Variable(_) | Origin::Flag(_)) => panic!("{other}"),
    };
    // Where a value comes from is what is true now.
    assert_eq!((line(&next, "listen"), line(&next, "grace")), (1, 4));
    // The same again changes nothing more.
    let (again, changes) = next.reloaded(&new);
    assert_eq!((changes.applied.len(), changes.needs_restart.len()), (0, 1));
    assert_eq!(*again.config, *next.config);
    assert_eq!(next.config.grace, Duration::from_secs(1));
}

#[test]
fn lists_have_shapes_that_the_environment_can_say() {
    for key in Key::all() {
        let is_list = key.value(&Config::default()).starts_with('[');
        assert_eq!(is_list, matches!(key.shape, Shape::Items | Shape::Words), "{}", key.name);
    }
}
