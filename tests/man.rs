//! Promise: each command has a page in the manual and each shell its completions, made from the commands'
//! own help.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that can't go on fails here")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{BATON, World, finish};

/// The pages that `baton man` writes.
fn pages(world: &World) -> (std::path::PathBuf, BTreeSet<String>) {
    let folder = world.path("man");
    // No home and no folder of its own: a package is built anywhere.
    let mut command = Command::new(BATON);
    command.env_clear().arg("man").arg("--dir").arg(&folder);
    let (status, _, error) = finish(&mut command);
    assert_eq!((status, error.as_str()), (0, ""));
    let names = std::fs::read_dir(&folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    (folder, names)
}

/// The commands that the help of `words` names.
fn commands_below(words: &[String]) -> Vec<String> {
    let (status, text, _) = finish(Command::new(BATON).args(words).arg("--help"));
    assert_eq!(status, 0, "{words:?}");
    let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    let name = |line: &str| {
        let rest = line.strip_prefix("  ")?;
        (!rest.starts_with(' ')).then(|| rest.split_whitespace().next().unwrap().to_owned())
    };
    listed.filter_map(name).filter(|name| name != "help").collect()
}

#[test]
fn each_command_that_the_help_names_has_a_page() {
    let world = World::new();
    let (_, found) = pages(&world);
    let mut expected = BTreeSet::from(["baton.1".to_owned()]);
    let mut parents = vec![Vec::new()];
    while let Some(words) = parents.pop() {
        for name in commands_below(&words) {
            let words: Vec<_> = words.iter().cloned().chain([name]).collect();
            expected.insert(format!("baton-{}.1", words.join("-")));
            parents.push(words);
        }
    }
    assert_eq!(found, expected);
    assert!(found.contains("baton-mutex-run.1") && found.contains("baton-agent-run.1"));
}

#[test]
fn examples_stand_line_by_line_and_folders_only_on_the_top_page() {
    let world = World::new();
    let (folder, _) = pages(&world);
    let page = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let top = page("baton.1");
    assert!(top.contains(".SH EXAMPLES\n.nf\n"), "{top}");
    assert!(top.contains("\\-\\-config\\-dir") && top.contains("BATON_CONFIG_DIR"), "{top}");
    assert!(top.contains("/run/lock/baton"), "{top}");
    assert!(top.contains(".TH baton 1 \" \" \"baton "), "{top}");
    let run = page("baton-run.1");
    assert!(run.contains(".SH EXAMPLES\n.nf\n"), "{run}");
    assert!(!run.contains("config\\-dir"), "{run}");
}

#[test]
fn each_page_is_sound_to_groff() {
    let groff = Command::new("groff").arg("--version").stdout(Stdio::null()).status();
    if !groff.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no groff here");
        return;
    }
    let world = World::new();
    let (folder, names) = pages(&world);
    for name in names {
        let arguments = ["-man", "-K", "utf8", "-T", "utf8", "-ww", "-z"];
        let (status, _, error) =
            finish(Command::new("groff").args(arguments).arg(Path::new(&folder).join(&name)));
        // A long word that fills a line badly is no mistake of the page.
        let complaints: Vec<_> =
            error.lines().filter(|line| !line.contains("adjust line")).collect();
        assert_eq!((status, complaints), (0, Vec::new()), "{name}");
    }
}

#[test]
fn each_shell_has_completions_of_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = Command::new(BATON);
        let (status, script, _) = finish(command.env_clear().args(["completion", shell]));
        assert_eq!(status, 0, "{shell}");
        for word in ["reboot-and-resume", "acquire", "at-most"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        // It is for who builds packages.
        let mut words = script.split(|c: char| !c.is_alphanumeric() && c != '-');
        assert!(!words.any(|word| word == "man"), "{shell}");
    }
}
