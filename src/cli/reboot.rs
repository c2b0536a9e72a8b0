//! `baton reboot-and-resume`: a script asks for a restart of the machine, and to be run again after it.
//! It only writes the wish down; the script's supervisor reads it when the script has ended.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::failure::{Failure, code};
use super::screen::{write_json, write_out};
use crate::script::{MAX_ATTEMPTS, check_text};
use crate::supervisor::job::{Job, Reboot};
use crate::workspace::Workspace;

/// The longest reason, in bytes; as that of a cancel.
const MAX_REASON_BYTES: usize = 1024;

/// Ask for a restart of the machine, and to be run again after it; inside a script
///
/// When the script then exits with 0, it waits in its place until the machine was restarted, and runs
/// again, with BATON_ATTEMPT one higher, in the same workspace and with the same log. It is not over
/// before: whoever waits behind it goes on waiting. With another exit code, or when it is stopped, the
/// wish is void. The agent's reboot_command restarts the machine, if it has one; else somebody must.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  if [ \"$BATON_ATTEMPT\" = 1 ]; then
    apt-get -y dist-upgrade && baton reboot-and-resume --reason 'new kernel'
    exit
  fi
  uname -r                             # attempt 2, after the restart

A script has at most 16 attempts.
Exit status: 0 it is written down, 1 it can't be asked for here, 2 usage.")]
pub(super) struct RebootArgs {
    /// Why, for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn reboot_and_resume(args: RebootArgs) -> Result<ExitCode, Failure> {
    check_text(&args.reason, MAX_REASON_BYTES)
        .map_err(|error| Failure::usage(format!("reason {error}")))?;
    let (workspace, job) = own_script()?;
    let attempt = job.attempt();
    let refused = |text: String| Failure::new(code::REFUSED, anyhow::Error::msg(text));
    if !job.may_resume {
        return Err(refused("no agent runs this script: nothing would run it again".to_owned())
            .hint("start one with `baton agent run`, and run the script with it"));
    }
    if attempt >= MAX_ATTEMPTS {
        return Err(refused(format!("this is attempt {attempt}, the last of {MAX_ATTEMPTS}")));
    }
    let wish = Reboot { attempt, reason: args.reason };
    workspace
        .write_json(&workspace.reboot(), &wish)
        .map_err(|error| Failure::new(code::INTERNAL, error))?;
    let next = attempt + 1;
    if args.json {
        write_json(&json!({"event": "restart_wished", "next_attempt": next}))?;
    } else {
        let text = "when this script exits with 0, it waits for a restart of the machine";
        write_out(format!("baton: {text}, then attempt {next} runs\n").as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The workspace and the job of the script that runs this command.
fn own_script() -> Result<(Workspace, Job), Failure> {
    let outside = || {
        Failure::usage("this is not inside a script of baton")
            .hint("it belongs into a script that `baton run` sends to an agent")
    };
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (id, work) =
        variable("BATON_SCRIPT_ID").zip(variable("BATON_WORKSPACE")).ok_or_else(outside)?;
    let folder = PathBuf::from(work).parent().map(PathBuf::from).ok_or_else(outside)?;
    let workspace = Workspace::at(folder);
    let job: Option<Job> = workspace
        .read_json(&workspace.job())
        .map_err(|error| Failure::new(code::INTERNAL, error))?;
    let job = job.filter(|job| job.script_id.as_str() == id).ok_or_else(outside)?;
    Ok((workspace, job))
}
