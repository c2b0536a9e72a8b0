//! `baton doctor`: what keeps baton from working here, and what to do about it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::failure::{Failure, code};
use super::screen::{write_json, write_out};
use crate::config::Directories;
use crate::doctor::{self, CHECKS, Checked, Mutexes, Scene, TARGET_CHECKS, Verdict, Wanted};
use crate::trust::Fingerprint;

const EXAMPLES: &str = "\
Examples:
  baton doctor                      look at this machine
  sudo baton doctor                 see also what belongs to the installed service
  baton doctor --strict && deploy   warnings count too
  baton doctor --target web-1       what can be asked of another machine's agent
  baton doctor --json | jq -r '.checks[] | select(.verdict == \"error\") | .check'

Each line is ok, unknown (this user may not see it, or nobody here can), warning or error, with
a hint. Nothing is changed, no root and no running agent are needed, and it takes a few
seconds at most, whatever hangs.

Exit status: 0 nothing worse than a warning, 1 an error (with --strict also a warning), 2 usage.";

/// Check everything that baton needs on this machine, and say what to do
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DoctorArgs {
    /// Print one object of JSON
    #[arg(long)]
    json: bool,
    /// Let warnings count as errors
    #[arg(long)]
    strict: bool,
    /// Ask the agent of another machine instead: a name from `baton target list`, or HOST:PORT with
    /// --fingerprint
    #[arg(long, short = 't', value_name = "TARGET")]
    target: Option<String>,
    /// The fingerprint of the agent at HOST:PORT
    #[arg(long, value_name = "FINGERPRINT", requires = "target")]
    fingerprint: Option<Fingerprint>,
}

/// Looks, and says what was found.
///
/// `named`: the variables of folders that are set, by a flag or the environment.
pub(super) fn doctor(
    args: DoctorArgs,
    folders: Directories,
    named: &[&str],
) -> Result<ExitCode, Failure> {
    let DoctorArgs { json, strict, target, fingerprint } = args;
    let checks = if target.is_some() { TARGET_CHECKS } else { CHECKS };
    let wanted = target.map(|target| Wanted { target, fingerprint });
    let is_named = named.contains(&"BATON_MUTEX_DIR");
    let mutexes = if is_named { Mutexes::Named } else { Mutexes::OfService };
    let checked = doctor::examine(&Arc::new(Scene::new(folders, mutexes, wanted)), checks);
    if json {
        write_json(&as_json(&checked))?;
    } else {
        write_out(render(&checked, has_colours()).as_bytes())?;
    }
    let limit = if strict { Verdict::Warning } else { Verdict::Error };
    let is_bad = worst(&checked) >= limit;
    Ok(if is_bad { ExitCode::from(code::REFUSED) } else { ExitCode::SUCCESS })
}

fn worst(checked: &[Checked]) -> Verdict {
    checked.iter().map(|checked| checked.finding.verdict).max().unwrap_or(Verdict::Ok)
}

fn as_json(checked: &[Checked]) -> serde_json::Value {
    let one = |Checked { name, finding }: &Checked| {
        json!({
            "check": name,
            "verdict": finding.verdict.name(),
            "found": finding.found,
            "hints": finding.hints,
        })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "verdict": worst(checked).name(),
        "checks": checked.iter().map(one).collect::<Vec<_>>(),
    })
}

/// Whether standard output is a terminal on which colours are wanted.
fn has_colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    io::stdout().is_terminal() && !unwanted
}

/// The lines, a heading for each subject, and how many there are of each kind.
fn render(checked: &[Checked], colours: bool) -> String {
    let parts = |name: &'static str| name.split_once('.').unwrap_or((name, ""));
    let width = checked.iter().map(|c| parts(c.name).1.len()).max().unwrap_or(0);
    let (mut text, mut last) = (String::new(), "");
    for Checked { name, finding } in checked {
        let (subject, what) = parts(name);
        if subject != last {
            writeln!(text, "{subject}").unwrap_or_default();
            last = subject;
        }
        let word = paint(finding.verdict, colours);
        // What has several lines, a file with several mistakes say, stays in its column.
        let found = finding.found.replace('\n', &format!("\n{:1$}", "", width + 13));
        writeln!(text, "  {word}  {what:width$}  {found}").unwrap_or_default();
        for hint in &finding.hints {
            let mark = if colours { "\u{1b}[1;36mhint:\u{1b}[0m" } else { "hint:" };
            writeln!(text, "           {:width$}  {mark} {hint}", "").unwrap_or_default();
        }
    }
    let count = |verdict| checked.iter().filter(|c| c.finding.verdict == verdict).count();
    let many = |count: usize, word: &str| match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    };
    writeln!(
        text,
        "\n{} ok, {} unknown, {}, {}",
        count(Verdict::Ok),
        count(Verdict::Unknown),
        many(count(Verdict::Warning), "warning"),
        many(count(Verdict::Error), "error"),
    )
    .unwrap_or_default();
    text
}

/// The word for a verdict, as wide as the longest.
fn paint(verdict: Verdict, colours: bool) -> String {
    let word = format!("{:7}", verdict.name());
    let colour = match verdict {
        _ if !colours => return word,
        Verdict::Ok => "32",
        Verdict::Unknown => "2",
        Verdict::Warning => "1;33",
        Verdict::Error => "1;31",
    };
    format!("\u{1b}[{colour}m{word}\u{1b}[0m")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Finding;

    #[test]
    fn lines_are_aligned_below_their_subject_with_hints_and_a_sum() {
        let finding = |verdict, found: &str, hints: &[&str]| Finding {
            verdict,
            found: found.to_owned(),
            hints: hints.iter().map(|&hint| hint.to_owned()).collect(),
        };
        let checked = [
            Checked { name: "a.one", finding: finding(Verdict::Ok, "fine", &[]) },
            Checked { name: "a.longer", finding: finding(Verdict::Warning, "so so", &["do it"]) },
            Checked { name: "b.x", finding: finding(Verdict::Error, "bad\nworse", &[]) },
        ];
        let expected = "a\n\
            \x20 ok       one     fine\n\
            \x20 warning  longer  so so\n\
            \x20                  hint: do it\n\
            b\n\
            \x20 error    x       bad\n\
            \x20                  worse\n\
            \n\
            1 ok, 0 unknown, 1 warning, 1 error\n";
        assert_eq!(render(&checked, false), expected);
        assert!(render(&checked, true).contains("\u{1b}[1;31merror  \u{1b}[0m"));
        assert_eq!(as_json(&checked)["verdict"], "error");
    }
}
