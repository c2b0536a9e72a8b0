//! The commands. The only code that prints.

mod agent;
mod artifacts;
mod cancel;
mod config;
mod demo;
mod deploy;
mod detail;
mod doctor;
mod drain;
mod failure;
mod flock;
mod forget;
mod identity;
mod lease;
mod list;
mod logs;
mod man;
mod moment;
mod moving;
mod mutex;
mod package;
mod pull;
mod push;
mod reach;
mod reboot;
mod remote;
mod rollout;
mod run;
mod screen;
mod service;
mod show;
mod target;
mod timeline;
mod values;
mod var;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::config::directories::DirectoryOverrides;
use crate::config::{Directories, Instance};
use failure::Failure;

const EXAMPLES: &str = "\
Examples:
  baton run -c 'echo hello'                    run a script on this machine, alone
  baton run --bypass-mutex deploy.sh           run it beside others that bypass
  baton run --target web-1 deploy.sh           run it on another machine
  baton queue                                  who runs, who waits, and for whom
  baton push -t web-1 app.tar.gz files:        bring a file to another machine
  baton package send build/ --id shop --version 1.4.2   bring what changed of a package
  baton mutex run log -- sh -c 'date >> log'   protect a command with a named mutex
  baton flock /tmp/build.lock make             flock(1), in order of arrival
  baton deploy web.toml -e Test --dry-run      what a deployment would run where
  baton --instance blue queue                  the same of another agent of this machine
  baton service install                        the agent as a service of this machine
  baton doctor                                 what keeps baton from working here
  baton demo                                   see five projects share a machine

Exit status: the script's own; else 124 run time limit, 75 queue time limit or busy,
130 cancelled, 126/127 not started, 69 agent unreachable, 77 not trusted or not allowed,
78 a newer baton wrote what is here, 70 lost or internal, 2 usage.";

/// Runs scripts on machines, one at a time under a machine-wide named mutex.
#[derive(Debug, Parser)]
#[command(name = "baton", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    folders: Folders,
    #[command(subcommand)]
    command: Command,
}

/// Where baton keeps what.
#[derive(Debug, Default, Args)]
struct Folders {
    /// Which agent of this machine, when it has several: NAME has its own configuration, state, socket and
    /// port; the mutexes are common [env: BATON_INSTANCE]
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        hide_short_help = true,
        help_heading = "Folders"
    )]
    instance: Option<String>,
    /// Folder of identity, configuration, peers and targets [env: BATON_CONFIG_DIR]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        hide_short_help = true,
        help_heading = "Folders"
    )]
    config_dir: Option<PathBuf>,
    /// Folder of database and workspaces [env: BATON_STATE_DIR]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        hide_short_help = true,
        help_heading = "Folders"
    )]
    state_dir: Option<PathBuf>,
    /// Folder of the agent's socket [env: BATON_RUNTIME_DIR]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        hide_short_help = true,
        help_heading = "Folders"
    )]
    runtime_dir: Option<PathBuf>,
    /// Folder of the named mutexes; the same for all that are to exclude each other
    /// [env: BATON_MUTEX_DIR]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        hide_short_help = true,
        help_heading = "Folders"
    )]
    mutex_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Queue(list::QueueArgs),
    List(list::ListArgs),
    Show(detail::ShowArgs),
    Logs(logs::LogsArgs),
    Artifacts(artifacts::ArtifactsArgs),
    Cancel(cancel::CancelArgs),
    Lease(lease::LeaseArgs),
    Push(push::PushArgs),
    Pull(pull::PullArgs),
    Package(package::PackageArgs),
    Forget(forget::ForgetArgs),
    RebootAndResume(reboot::RebootArgs),
    Mutex(mutex::MutexArgs),
    Flock(flock::FlockArgs),
    Output(values::OutputArgs),
    Progress(values::ProgressArgs),
    Var(var::VarArgs),
    Deploy(Box<deploy::DeployArgs>),
    Agent(agent::AgentArgs),
    Config(config::ConfigArgs),
    Service(service::ServiceArgs),
    Target(target::TargetArgs),
    Identity(identity::IdentityArgs),
    Doctor(doctor::DoctorArgs),
    Demo(demo::DemoArgs),
    /// Print the completion script for a shell
    ///
    /// For example: baton completion bash > /etc/bash_completion.d/baton
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Folders {
    /// Those that are set, by a flag or else by the environment.
    fn set(self) -> Result<DirectoryOverrides, Failure> {
        // Not by clap: its usage lines would list whatever the environment sets.
        let set_by = |flag: Option<PathBuf>, variable: &str| {
            let value = std::env::var_os(variable).filter(|value| !value.is_empty());
            flag.or(value.map(PathBuf::from))
        };
        let environment = || std::env::var("BATON_INSTANCE").ok().filter(|name| !name.is_empty());
        let instance = self.instance.or_else(environment);
        let instance = instance.map(|name| Instance::parse(&name)).transpose()?.flatten();
        Ok(DirectoryOverrides {
            instance,
            config: set_by(self.config_dir, "BATON_CONFIG_DIR"),
            state: set_by(self.state_dir, "BATON_STATE_DIR"),
            runtime: set_by(self.runtime_dir, "BATON_RUNTIME_DIR"),
            mutex: set_by(self.mutex_dir, "BATON_MUTEX_DIR"),
        })
    }
}

/// `baton mutex run` alone: to build the parser of all commands takes longer than to take a mutex. What
/// it does not understand is left to [`Cli`], also its help.
#[derive(Debug, Parser)]
#[command(name = "baton mutex run")]
struct MutexRun {
    #[command(flatten)]
    folders: Folders,
    #[command(flatten)]
    args: mutex::RunArgs,
}

impl MutexRun {
    fn try_parse(words: &[OsString]) -> Option<Self> {
        let [program, mutex, run, words @ ..] = words else { return None };
        if mutex != "mutex" || run != "run" {
            return None;
        }
        if let Some(args) = mutex::RunArgs::plain(words) {
            return Some(Self { folders: Folders::default(), args });
        }
        Self::try_parse_from([program].into_iter().chain(words)).ok()
    }
}

/// Runs the command line.
pub fn main(words: &[OsString]) -> ExitCode {
    run_command(words).unwrap_or_else(Failure::report)
}

fn run_command(words: &[OsString]) -> Result<ExitCode, Failure> {
    if let Some(words) = flock::words_of(words) {
        return flock::flock(words, Folders::default().set()?);
    }
    if let Some(MutexRun { folders, args }) = MutexRun::try_parse(words) {
        return mutex::run(&args, folders.set()?);
    }
    if let Some(args) = man::ManArgs::parse(words) {
        return man::man(&args, Cli::command());
    }
    dispatch(words)
}

// Its frame is of many pages, and each is touched: `mutex run` has no use for them.
#[inline(never)]
fn dispatch(words: &[OsString]) -> Result<ExitCode, Failure> {
    let cli = Cli::parse_from(words);
    let set = cli.folders.set()?;
    // No runtime and no other folder: it is on the way of every protected command.
    if let Command::Mutex(args) = cli.command {
        return mutex::mutex(args, set);
    }
    if let Command::Flock(args) = cli.command {
        return flock::flock(&args.words, set);
    }
    if let Command::Package(args) = cli.command {
        return package::package(args, set);
    }
    // Of a script's own: they need no folder.
    if let Command::Output(args) = &cli.command {
        return values::output(args);
    }
    if let Command::Progress(args) = &cli.command {
        return values::progress(args);
    }
    if let Command::Var(args) = &cli.command {
        return var::var(args);
    }
    if let Command::RebootAndResume(args) = cli.command {
        return reboot::reboot_and_resume(args);
    }
    // For who builds a package: there may be no home.
    if let Command::Completion { shell } = cli.command {
        return completion(shell);
    }
    let variables = set.variables();
    let folders = Directories::resolve(set)?;
    match cli.command {
        Command::Run(args) => asynchronous(run::run(*args, folders)),
        Command::Queue(args) => asynchronous(list::queue(args, folders)),
        Command::List(args) => asynchronous(list::list(args, folders)),
        Command::Output(args) => values::output(&args),
        Command::Progress(args) => values::progress(&args),
        Command::Show(args) => asynchronous(detail::show(args, folders)),
        Command::Logs(args) => asynchronous(logs::logs(args, folders)),
        Command::Artifacts(args) => asynchronous(artifacts::artifacts(args, folders)),
        Command::Lease(args) => asynchronous(lease::lease(args, folders)),
        Command::Cancel(args) => asynchronous(cancel::cancel(args, folders)),
        Command::Push(args) => asynchronous(push::push(args, folders)),
        Command::Pull(args) => asynchronous(pull::pull(args, folders)),
        Command::Package(args) => package::package(args, folders.into()),
        Command::Forget(args) => asynchronous(forget::forget(args, folders)),
        Command::Demo(args) => asynchronous(demo::demo(args, folders)),
        Command::RebootAndResume(args) => reboot::reboot_and_resume(args),
        Command::Mutex(args) => {
            let (config, mutex) = (Some(folders.config), Some(folders.mutex));
            let set = DirectoryOverrides { config, mutex, ..DirectoryOverrides::default() };
            mutex::mutex(args, set)
        }
        Command::Flock(args) => {
            let mutex = Some(folders.mutex);
            flock::flock(&args.words, DirectoryOverrides { mutex, ..DirectoryOverrides::default() })
        }
        Command::Var(args) => var::var(&args),
        Command::Deploy(args) => deploy::deploy(*args, &folders),
        Command::Agent(args) => agent::agent(args, folders),
        Command::Config(args) => config::config(args, folders),
        Command::Service(args) => service::service(args, folders.instance.as_ref(), &variables),
        Command::Target(args) => target::target(args, &folders),
        Command::Identity(args) => identity::identity(&args, &folders),
        Command::Doctor(args) => doctor::doctor(args, folders, &variables),
        Command::Completion { shell } => completion(shell),
    }
}

fn completion(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "baton", &mut script);
    screen::write_out(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a command that calls an agent.
fn asynchronous<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A thread may be stuck in a write to a pipe that nobody reads.
    runtime.shutdown_background();
    result
}

/// Parses `KEY=VALUE`.
fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is expected")?;
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Parses a time such as `90s`, `10m`, `1h30m`; zero is none.
fn time_limit(text: &str) -> Result<std::time::Duration, String> {
    let time = time(text)?;
    if time.is_zero() {
        return Err("is zero; leave it out for no limit".to_owned());
    }
    Ok(time)
}

fn time(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; for example 90s, 10m, 1h30m"))
}

/// The shortest time between two texts of the same kind: nobody reads faster.
const MIN_INTERVAL: std::time::Duration = std::time::Duration::from_millis(10);

/// Parses how often something is told.
fn interval(text: &str) -> Result<std::time::Duration, String> {
    let time = time(text)?;
    if time < MIN_INTERVAL {
        return Err(format!("is less than {}", humantime::format_duration(MIN_INTERVAL)));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_again_and_again_has_a_pause_and_no_word_of_a_limit() {
        assert_eq!(interval("1m"), Ok(std::time::Duration::from_mins(1)));
        assert_eq!(interval("0"), Err("is less than 10ms".to_owned()));
        assert!(time_limit("0").is_err_and(|told| told.contains("leave it out")));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_time_limit_has_a_unit_and_is_not_zero() {
        assert_eq!(time_limit("1m30s"), Ok(std::time::Duration::from_secs(90)));
        time_limit("0s").unwrap_err();
        time_limit("soon").unwrap_err();
    }
}
