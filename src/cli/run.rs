//! `baton run`: runs a script and shows it to its end.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::num::{NonZeroU8, NonZeroU32};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Failure, code, complain};
use super::reach::{AwayLimit, Reach};
use super::screen::{Screen, write_json, write_out};
use super::{artifacts, key_value, show, time_limit};
use crate::client::{Client, ClientError, Following};
use crate::config::Directories;
use crate::mutex::deadlock::{self, HELD_VARIABLE};
use crate::mutex::{ExclusiveKey, MutexName};
use crate::script::{Isolation, ScriptId, StragglerPolicy};
use crate::spec::{MAX_BODY_BYTES, Spec, SpecError, SpecFile, What};

/// How long to wait before an agent that is away is asked again to stop the script.
const CANCEL_PAUSE: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  baton run deploy.sh web prod           run a file with two arguments
  baton run -c 'echo hello from $(hostname)'
  baton run --interpreter python3 -c 'print(6 * 7)'
  baton run --bypass-mutex --exclusive-key web/prod deploy.sh
  baton run --observe -c 'systemctl is-active nginx'
  baton run --artifacts out -c 'cp report.html $BATON_ARTIFACTS'
  baton run --target web-1 --timeout 10m --queue-timeout 1h --label project=web deploy.sh
  id=$(baton run --detach deploy.sh); baton logs --follow $id

An agent that is away is waited for (--away-limit), and its script is followed on when it is back.
The first Ctrl-C asks the agent to stop the script, the second leaves at once. When the terminal
goes away, a script of an agent goes on.
Exit status: the script's own; else 124 run time limit, 75 queue time limit or busy,
130 cancelled, 126/127 not started, 69 agent unreachable, 77 not trusted or not allowed,
70 lost or internal, 2 usage.";

/// What `--stragglers` says.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Stragglers {
    /// They are ended and named
    End,
    /// They go on, hold no mutex, and must write elsewhere than to the script's output
    Keep,
}

impl From<Stragglers> for StragglerPolicy {
    fn from(what: Stragglers) -> Self {
        match what {
            Stragglers::End => Self::End,
            Stragglers::Keep => Self::Keep,
        }
    }
}

/// Run a script on this machine or another one
///
/// It runs alone, under the machine mutex, unless told otherwise; what comes meanwhile queues in
/// order of arrival. Without --target it uses this machine's agent; if none runs, this command
/// brings one that lives as long as it does.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct RunArgs {
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    away: AwayLimit,
    /// Run beside other scripts that bypass, never beside one that does not
    #[arg(long)]
    bypass_mutex: bool,
    /// With --bypass-mutex: while this script runs, at most N do, itself included
    #[arg(long, value_name = "N", requires = "bypass_mutex")]
    at_most: Option<NonZeroU32>,
    /// Take no mutex and never wait: for health checks
    #[arg(long, conflicts_with_all = ["bypass_mutex", "exclusive_key"])]
    observe: bool,
    /// The mutex to take
    #[arg(long, value_name = "NAME", default_value = "machine")]
    mutex: MutexName,
    /// Never run beside a script with the same key, even if both bypass: for example web/prod
    #[arg(long, value_name = "KEY")]
    exclusive_key: Option<ExclusiveKey>,
    /// Run under this lease (`baton lease open`), after its other scripts
    #[arg(long, value_name = "ID", conflicts_with_all = ["observe", "exclusive_key", "reboot_exit_code"])]
    lease: Option<ScriptId>,
    /// The program that reads the script. Default: what its first line `#!…` names, else bash
    #[arg(long, short, value_name = "PROGRAM")]
    interpreter: Option<String>,
    /// Stop the script after so long; time in the queue doesn't count
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    timeout: Option<Duration>,
    /// Give up when the script still waits after so long
    #[arg(long, value_name = "TIME", value_parser = time_limit)]
    queue_timeout: Option<Duration>,
    /// The time between asking the script to stop and forcing it. Default: 10s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
    /// How much output is kept, in bytes; the script goes on beyond. Default: the agent's limit
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    max_output: Option<u64>,
    /// What becomes of processes that are left when the script ends
    #[arg(long, value_name = "WHAT", value_enum, default_value = "end")]
    stragglers: Stragglers,
    /// The exit code by which the script asks for a restart of the machine, to be run again after it
    #[arg(long, value_name = "CODE")]
    reboot_exit_code: Option<NonZeroU8>,
    /// Add a variable to the script's environment
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// Pass a variable of this command's environment on as a secret: * in the output instead
    #[arg(long, value_name = "NAME")]
    secret: Vec<String>,
    /// Say what the script is about; shown wherever it is named
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Send a small file along, into the folder "files" of the workspace
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// The folder to run in. Default: the script's workspace
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// The script's id: sent again, the same request runs only once. Default: a new one
    #[arg(long, value_name = "ID")]
    id: Option<ScriptId>,
    /// Fetch the files that the script leaves in $BATON_ARTIFACTS into this folder, at its end
    #[arg(long, value_name = "DIR", conflicts_with = "detach")]
    artifacts: Option<PathBuf>,
    /// Leave Octopus service messages (##octopus[…]) in the output as they are
    #[arg(long)]
    no_service_messages: bool,
    /// Print the script's id and leave; the script goes on
    #[arg(long, short)]
    detach: bool,
    /// Print events as JSON, one a line
    #[arg(long)]
    json: bool,
    /// The text of the script
    #[arg(short = 'c', value_name = "TEXT")]
    command: Option<String>,
    /// The script's file (- is standard input) and its arguments; after -c, arguments only
    #[arg(value_name = "SCRIPT", trailing_var_arg = true, allow_hyphen_values = true)]
    script: Vec<String>,
}

pub(super) async fn run(args: RunArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let spec = args.spec()?;
    if args.detach {
        return detach(&args, &folders, spec).await;
    }
    if args.reach.is_here() {
        refuse_to_wait_for_oneself(&spec, &folders)?;
    }
    let (client, mut embedded) = args.reach.client_or_embedded(&folders).await?;
    let id = spec.script_id.clone();
    let goes_on = embedded.is_none();
    let cant_resume = spec.reboot_exit_code.is_some();
    if let Some(embedded) = embedded.take_if(|_| cant_resume) {
        embedded.close().await;
        return Err(Failure::usage(
            "--reboot-exit-code needs an agent: nothing runs the script again",
        )
        .hint("start one with `baton agent run`"));
    }
    let client = if goes_on { args.away.of(client) } else { client };
    mind_signals(client.clone(), id.clone(), goes_on)?;
    let screen = Screen::new(args.json).of(args.reach.name());
    let result = follow(client.run(spec), screen).await;
    // Before the end of an agent that is part of this command: they go with it.
    let fetched = match &args.artifacts {
        Some(folder) if result.is_ok() => artifacts::get_all(&client, &id, folder, args.json).await,
        _ => Ok(()),
    };
    if let Some(embedded) = embedded {
        embedded.close().await;
    }
    match result {
        Err(failure) if goes_on && failure.is_broken_pipe() => {
            let text = "nobody reads the output; the script goes on";
            complain(&format!("baton: {text}: baton logs {id}"));
            Err(failure)
        }
        Err(failure) if goes_on && failure.is_connection() => {
            let at = args.reach.words();
            let look = format!("baton show {id}{at}; then baton logs --follow {id}{at}");
            Err(failure.hint(format!("if it was accepted, script {id} goes on there: {look}")))
        }
        other => fetched.and(other),
    }
}

/// A script that waits for another one, which waits for the script's own mutex, would wait for ever.
fn refuse_to_wait_for_oneself(spec: &Spec, folders: &Directories) -> Result<(), Failure> {
    let held = std::env::var(HELD_VARIABLE).unwrap_or_default();
    let held = deadlock::from_variable(&held);
    match crate::mutex::status::conflict(&folders.mutex, &held, &spec.claims())? {
        Some(held) => Err(Failure::new(
            code::BUSY,
            anyhow::anyhow!(
                "it would wait for itself: what runs this command holds `{}`",
                held.mutex
            ),
        )
        .hint("--detach doesn't wait; --mutex names another mutex; --observe takes none")),
        None => Ok(()),
    }
}

async fn detach(args: &RunArgs, folders: &Directories, spec: Spec) -> Result<ExitCode, Failure> {
    let client = args.reach.client(folders).await?;
    let script = client.start(spec).await?;
    if args.json {
        write_json(&json!({"event": "accepted", "script": show::script_json(&script)}))?;
    } else {
        write_out(format!("{}\n", script.script_id).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows a script to its end.
pub(super) async fn follow(
    mut following: Following,
    mut screen: Screen,
) -> Result<ExitCode, Failure> {
    while let Some(heard) = following.next().await? {
        // Output may block for as long as its reader likes; signals are heard meanwhile.
        tokio::task::block_in_place(|| screen.show(heard))?;
    }
    Ok(screen.finish())
}

/// What a signal means to this command.
enum Noticed {
    /// The script is to stop; said twice, this command leaves.
    Stop,
    /// The terminal is gone.
    HangUp,
}

/// The first Ctrl-C asks the agent to stop the script, the second ends this command at once. When
/// the terminal goes away, the script goes on with its agent; without one it is stopped.
fn mind_signals(client: Client, id: ScriptId, goes_on: bool) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    // What nohup has ignored stays ignored.
    let hang_up_number = SignalKind::hangup().as_raw_value();
    let is_wanted = !crate::mutex::os::not_ignored(&[hang_up_number]).is_empty();
    let mut hang_up = is_wanted.then(|| signal(SignalKind::hangup())).transpose()?;
    // The task ends with the command: the runtime is shut down behind it.
    drop(tokio::spawn(async move {
        let mut asked = false;
        loop {
            let noticed = tokio::select! {
                _ = interrupt.recv() => Noticed::Stop,
                _ = terminate.recv() => Noticed::Stop,
                () = received(hang_up.as_mut()) => Noticed::HangUp,
            };
            match noticed {
                Noticed::HangUp if goes_on => leave(&id, code::HUNG_UP),
                Noticed::Stop | Noticed::HangUp if asked => leave(&id, code::CANCELLED),
                Noticed::Stop | Noticed::HangUp => {}
            }
            asked = true;
            complain("baton: asking the agent to stop the script; once more to leave at once");
            drop(tokio::spawn(cancel(client.clone(), id.clone())));
        }
    }));
    Ok(())
}

async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Ends this command and says where the script is to be found.
fn leave(id: &ScriptId, code: u8) -> ! {
    complain(&format!("baton: leaving; what becomes of the script: baton logs --follow {id}"));
    std::process::exit(i32::from(code));
}

/// Asks until the agent has heard it: it may be restarting, or not know the script yet.
async fn cancel(client: Client, id: ScriptId) {
    let reason = "interrupted by the user who ran it";
    while let Err(error) = client.cancel(&id, reason.to_owned()).await {
        let unknown =
            matches!(&error, ClientError::Refused { reason, .. } if reason == "SCRIPT_NOT_FOUND");
        if !unknown && !error.is_passing() {
            complain(&format!("baton: can't be cancelled: {error}"));
            return;
        }
        tokio::time::sleep(CANCEL_PAUSE).await;
    }
}

impl RunArgs {
    /// The variables that are given, and the secrets.
    fn environment(&self) -> Result<BTreeMap<String, String>, Failure> {
        let mut environment: BTreeMap<String, String> = self.env.iter().cloned().collect();
        for name in &self.secret {
            let value = std::env::var(name).map_err(|error| {
                Failure::usage(format!("--secret {name}: {error}"))
                    .hint(format!("it is not given on the command line: export {name} first"))
            })?;
            environment.insert(name.clone(), value);
        }
        Ok(environment)
    }

    fn spec(&self) -> Result<Spec, Failure> {
        let (text, arguments) = self.text()?;
        let interpreter = match &self.interpreter {
            Some(interpreter) => interpreter.clone(),
            None => named_interpreter(&text)?.unwrap_or_else(|| "bash".to_owned()),
        };
        let isolation = if self.observe {
            Isolation::Observer
        } else if self.bypass_mutex {
            Isolation::Shared { at_most: self.at_most }
        } else {
            Isolation::Exclusive
        };
        let spec = Spec {
            script_id: self.id.clone().unwrap_or_else(ScriptId::random),
            what: What::Body { text, interpreter },
            arguments,
            environment: self.environment()?,
            sensitive: self.secret.clone(),
            files: self.file.iter().map(|path| read_file(path)).collect::<Result<_, _>>()?,
            working_directory: self.directory.clone(),
            isolation,
            mutex: self.mutex.clone(),
            exclusive_key: self.exclusive_key.clone(),
            queue_time_limit: self.queue_timeout,
            run_time_limit: self.timeout,
            grace: self.grace,
            labels: self.label.iter().cloned().collect(),
            max_output_bytes: self.max_output,
            stragglers: self.stragglers.into(),
            service_messages: !self.no_service_messages,
            reboot_exit_code: self.reboot_exit_code,
            lease: self.lease.clone(),
        };
        spec.check()?;
        Ok(spec)
    }

    /// The script's text and its arguments.
    fn text(&self) -> Result<(Bytes, Vec<String>), Failure> {
        if let Some(text) = &self.command {
            return Ok((text.clone().into(), self.script.clone()));
        }
        let Some((path, arguments)) = self.script.split_first() else {
            return Err(Failure::usage("there is no script")
                .hint("name a file, or give the text with -c; `baton run --help` has examples"));
        };
        Ok((read_script(path)?, arguments.to_vec()))
    }
}

fn read_script(path: &str) -> Result<Bytes, Failure> {
    let limit = u64::try_from(MAX_BODY_BYTES).unwrap_or(u64::MAX);
    let mut text = Vec::new();
    // One byte more than allowed is enough to know that it is too long.
    let read = if path == "-" {
        std::io::stdin().lock().take(limit + 1).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut text))
    };
    match read {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(Failure::usage(format!("script {path:?}: {error}"))
            .hint("to run a text instead of a file, use -c")),
    }
}

fn read_file(path: &Path) -> Result<SpecFile, Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |error| Failure::usage(format!("file {}: {error}", path.display()));
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| Failure::usage(format!("{}: no file name", path.display())))?;
    let mode = path.metadata().map_err(failed)?.permissions().mode();
    let content = std::fs::read(path).map_err(failed)?.into();
    Ok(SpecFile { name: name.to_owned(), content, executable: mode & 0o111 != 0 })
}

/// The interpreter that the first line of a script names.
fn named_interpreter(text: &[u8]) -> Result<Option<String>, Failure> {
    let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(line) = line.strip_prefix(b"#!") else {
        return Ok(None);
    };
    let line = String::from_utf8_lossy(line);
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [] => Ok(None),
        ["/usr/bin/env" | "/bin/env", program] | [program] => Ok(Some((*program).to_owned())),
        _ => Err(Failure::usage(format!(
            "the first line, `#!{line}`, gives its interpreter options"
        ))
        .hint("put them into the script (`set -e`, say), and name it alone or with --interpreter")),
    }
}

impl From<SpecError> for Failure {
    fn from(error: SpecError) -> Self {
        Self::new(code::USAGE, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_the_interpreter() {
        let named = |text: &str| named_interpreter(text.as_bytes()).map_err(|_| ());
        assert_eq!(named("echo hi"), Ok(None));
        assert_eq!(named("#!/bin/sh\necho hi"), Ok(Some("/bin/sh".to_owned())));
        assert_eq!(named("#! /usr/bin/env python3\n"), Ok(Some("python3".to_owned())));
        assert_eq!(named("#!/bin/bash -e\n"), Err(()));
    }
}
