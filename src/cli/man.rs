//! `baton man`: writes the manual pages, one for each command, for whoever builds a package.
//!
//! The pages are the commands' own help: what stands below it (examples, exit statuses) keeps its lines.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Command, Parser};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::failure::{Failure, code};

/// What the top page says of the machine's files.
const FILES: [(&str, &str); 6] = [
    (
        "/etc/baton/agent.toml",
        "The agent's configuration. Of another instance: /etc/baton/instances/NAME.",
    ),
    ("/etc/baton/peers.toml", "Whom the agent trusts, written by baton agent trust."),
    ("/var/lib/baton", "Queue, history, workspaces and output of scripts."),
    ("/run/baton/agent.sock", "The agent's socket for callers on this machine."),
    (
        "/run/lock/baton",
        "The named mutexes of this machine, common to all agents and commands of root.",
    ),
    (
        "~/.config/baton, ~/.local/state/baton",
        "The same for others than root, unless the XDG variables say otherwise.",
    ),
];

/// An empty word would be left out, and the words behind it move up.
const NO_DATE: &str = " ";

/// Write the manual pages into a folder, one for each command
///
/// A parser of its own: it is for who builds packages, and completions offer also what is hidden.
#[derive(Debug, Parser)]
#[command(name = "baton man", after_help = "Examples:\n  baton man --dir target/man")]
pub(super) struct ManArgs {
    /// The folder, which is made if need be
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

impl ManArgs {
    /// When the first word asks for it.
    pub(super) fn parse(words: &[OsString]) -> Option<Self> {
        let asked = words.get(1)? == "man";
        asked.then(|| Self::parse_from(&words[1..]))
    }
}

/// Writes the pages of `command` and of all that stand below it.
pub(super) fn man(args: &ManArgs, command: Command) -> Result<ExitCode, Failure> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let text = || format!("writing the manual into {}", args.dir.display());
    std::fs::create_dir_all(&args.dir)
        .and_then(|()| write_pages(command, None, &args.dir))
        .with_context(text)
        .map_err(|error| Failure::new(code::INTERNAL, error))?;
    Ok(ExitCode::SUCCESS)
}

fn write_pages(command: Command, above: Option<&str>, folder: &Path) -> io::Result<()> {
    let page = page_name(&command).to_owned();
    for below in command.get_subcommands() {
        write_pages(below.clone(), Some(&page), folder)?;
    }
    let mut file = File::create(folder.join(format!("{page}.1")))?;
    file.write_all(&render(command, above)?)
}

fn page_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn render(command: Command, above: Option<&str>) -> io::Result<Vec<u8>> {
    // What all commands have in common stands on the top page, and only there.
    let command = command.mut_args(|arg| {
        let hide = arg.is_hide_set() || (above.is_some() && arg.is_global_set());
        let says_default = arg.get_default_values().iter().any(|value| !value.is_empty());
        let hide_default = arg.is_hide_default_value_set() || !says_default;
        arg.hide(hide).hide_short_help(false).hide_default_value(hide_default)
    });
    let after = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let is_parent = command.has_subcommands();
    let has_options = command.get_arguments().any(|arg| !arg.is_hide_set());
    let man = Man::new(command)
        .date(NO_DATE)
        .source(concat!("baton ", env!("CARGO_PKG_VERSION")))
        .manual("baton");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    if is_parent {
        man.render_subcommands_section(&mut out)?;
    }
    if has_options {
        man.render_options_section(&mut out)?;
    }
    let mut roff = Roff::new();
    for section in sections(after.as_deref().unwrap_or_default()) {
        roff.control("SH", [section.title.as_str()]).control("nf", []);
        for line in section.lines {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    match above {
        None => files(&mut roff),
        Some(above) => see_also(&mut roff, above),
    }
    out.extend(roff.to_roff().into_bytes());
    Ok(out)
}

fn files(roff: &mut Roff) {
    roff.control("SH", ["FILES"]);
    for (path, what) in FILES {
        roff.control("TP", []).text([bold(path)]).text([roman(what)]);
    }
}

fn see_also(roff: &mut Roff, above: &str) {
    roff.control("SH", ["SEE ALSO"]).text([bold(above), roman("(1)")]);
}

/// A part of the text below a command's help.
#[derive(Debug, PartialEq, Eq)]
struct Section<'a> {
    title: String,
    lines: Vec<&'a str>,
}

/// Pure: the parts. One begins with a line such as `Examples:`, or with `Exit status`, whose text stands behind
/// it; what has no title is a note.
fn sections(text: &str) -> Vec<Section<'_>> {
    let mut found: Vec<Section<'_>> = Vec::new();
    let mut begin = true;
    for line in text.lines() {
        let title = line.strip_suffix(':');
        let title = title.map(|title| title.split_once(", ").map_or(title, |(title, _)| title));
        let starts = line.starts_with(char::is_uppercase);
        let (title, rest) = match title {
            Some(title) if starts => (Some(title.to_uppercase()), None),
            _ if line.starts_with("Exit status") => (
                Some("EXIT STATUS".to_owned()),
                Some(line.strip_prefix("Exit status: ").unwrap_or(line)),
            ),
            _ if begin && !line.is_empty() && starts => (Some("NOTES".to_owned()), Some(line)),
            _ => (None, Some(line)),
        };
        if let Some(title) = title {
            found.push(Section { title, lines: Vec::new() });
        }
        if let (Some(section), Some(rest)) = (found.last_mut(), rest) {
            section.lines.push(rest);
        }
        begin = line.is_empty();
    }
    for section in &mut found {
        while section.lines.last().is_some_and(|line| line.is_empty()) {
            section.lines.pop();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(text: &str) -> Vec<(String, String)> {
        let sections = sections(text).into_iter();
        sections.map(|section| (section.title, section.lines.join("|"))).collect()
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect()
    }

    #[test]
    fn what_stands_below_the_help_becomes_sections_and_keeps_its_lines() {
        let text = "Examples:\n  baton a\n  baton b\n\nA note\nof two lines.\nExit status: 0 well,\n1 else.";
        let expected = [
            ("EXAMPLES", "  baton a|  baton b"),
            ("NOTES", "A note|of two lines."),
            ("EXIT STATUS", "0 well,|1 else."),
        ];
        assert_eq!(titles(text), pairs(&expected));
    }

    #[test]
    fn a_condition_of_an_exit_status_stays() {
        let text = "Exit status with --wait: 0 nothing runs";
        assert_eq!(titles(text), pairs(&[("EXIT STATUS", text)]));
    }

    #[test]
    fn options_of_flock_are_a_section() {
        let text = "Options, before FILE; the rest:\n  -x   alone";
        assert_eq!(titles(text), pairs(&[("OPTIONS", "  -x   alone")]));
    }
}
