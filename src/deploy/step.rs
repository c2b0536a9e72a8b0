//! Pure: the steps of a project, checked.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Places, below};
use super::limit;
use super::plan::{Condition, Retry};
use super::problem::Problem;
pub use super::project_file::IsolationName;
use super::project_file::{ActionName, RetryTable, ScriptTable, Start, StepTable};
use super::targets::check_word;

/// Who reads a script that names no interpreter.
pub const DEFAULT_INTERPRETER: &str = "bash";
/// The time before the first repetition, unless the step says otherwise.
const DEFAULT_DELAY: Duration = Duration::from_secs(1);
/// The longest time before a repetition, unless the step says otherwise.
const DEFAULT_MAX_DELAY: Duration = Duration::from_mins(1);
/// How often a step may be tried again.
const MAX_REPETITIONS: u32 = 100;

/// A step of a project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its key in the file.
    pub key: String,
    /// Its name.
    pub name: String,
    /// It runs on targets with one of these roles; empty: on all.
    pub roles: Vec<String>,
    /// Whether it runs side by side with the step before.
    pub starts_with_previous: bool,
    /// When it runs.
    pub condition: Condition,
    /// Its claim on the machine; `None`: what the variable says.
    pub isolation: Option<IsolationName>,
    /// On how many machines it runs at once; `None`: what the variable says.
    pub max_parallelism: Option<NonZeroU32>,
    /// How long it runs at most.
    pub run_time: Option<Duration>,
    /// How long it waits at most.
    pub queue_time: Option<Duration>,
    /// How long an agent is waited for that is away; `None`: what the target says.
    pub away: Option<Duration>,
    /// How it is tried again; `None`: it is not.
    pub retry: Option<Retry>,
    /// What it does.
    pub work: Work,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Runs a script.
    Script(ScriptWork),
    /// Asks each target how it is.
    HealthCheck,
    /// Makes a package's version the current one.
    Package {
        /// The package's id.
        id: String,
    },
    /// Waits until somebody lets it go on.
    Pause {
        /// What that person is told.
        message: String,
    },
}

/// A script, and what it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptWork {
    /// One for each interpreter, sorted by the interpreter's name; at least one.
    pub sources: Vec<ScriptSource>,
    /// Its arguments, with variables.
    pub arguments: Vec<String>,
    /// Its environment variables, with variables in their values.
    pub inputs: BTreeMap<String, String>,
    /// The ids of the packages that it uses.
    pub packages: Vec<String>,
}

/// A script for one interpreter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptSource {
    /// Who reads it.
    pub interpreter: String,
    /// Where it is.
    pub source: Source,
    /// Its key in the file.
    pub key: String,
}

/// Where a script's text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Here.
    Text(String),
    /// In a file, relative to the project file's folder unless absolute.
    File(PathBuf),
}

impl Step {
    /// Checks a step of the file.
    pub(super) fn check(
        at: usize,
        table: StepTable,
        places: &Places,
    ) -> Result<Self, Vec<Problem>> {
        let mut checking = Checking { key: format!("steps[{at}]"), places, problems: Vec::new() };
        let step = checking.step(table);
        match step {
            Some(step) if checking.problems.is_empty() => Ok(step),
            _ => Err(checking.problems),
        }
    }

    /// The packages that it uses: key and id.
    pub fn packages(&self) -> Vec<(String, &str)> {
        match &self.work {
            Work::Script(script) => {
                let ids = script.packages.iter().enumerate();
                ids.map(|(at, id)| (format!("{}.packages[{at}]", self.key), id.as_str())).collect()
            }
            Work::Package { id } => vec![(format!("{}.package", self.key), id)],
            Work::HealthCheck | Work::Pause { .. } => Vec::new(),
        }
    }
}

/// Checks one step and keeps what is wrong.
struct Checking<'a> {
    key: String,
    places: &'a Places,
    problems: Vec<Problem>,
}

impl Checking<'_> {
    /// `field` is below the step: `retry.times`.
    fn refuse(&mut self, field: &str, message: impl Into<String>) -> &mut Problem {
        let key = if field.is_empty() { self.key.clone() } else { format!("{}.{field}", self.key) };
        self.problems.push(self.places.problem(key, message));
        let last = self.problems.len() - 1;
        &mut self.problems[last]
    }

    fn take<T>(&mut self, field: &str, value: Result<T, String>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(field, message);
                None
            }
        }
    }

    fn step(&mut self, mut table: StepTable) -> Option<Step> {
        self.take("name", check_word(&table.name));
        for (at, role) in table.roles.iter().enumerate() {
            let checked = check_word(role).map_err(|e| format!("roles[{at}] {e}"));
            self.take("roles", checked);
        }
        let action = table.action.unwrap_or_default();
        self.check_fields(action, &table);
        let retry = self.retry(&mut table);
        let max_parallelism = table.max_parallelism.and_then(NonZeroU32::new);
        let mut time = |field, text: Option<String>| {
            text.and_then(|text| self.take(field, limit::time(&text)))
        };
        let run_time = time("timeout", table.timeout.take());
        let queue_time = time("queue_timeout", table.queue_timeout.take());
        let away = table.away_limit.take();
        let away = away.and_then(|text| self.take("away_limit", limit::away(&text)));
        let work = self.work(action, &mut table)?;
        Some(Step {
            key: self.key.clone(),
            name: table.name,
            roles: table.roles,
            starts_with_previous: table.start == Some(Start::WithPrevious),
            condition: table.condition.unwrap_or_default(),
            isolation: table.isolation,
            max_parallelism,
            run_time,
            queue_time,
            away,
            retry,
            work,
        })
    }

    /// Refuses what means nothing for the action.
    fn check_fields(&mut self, action: ActionName, table: &StepTable) {
        use ActionName::{HealthCheck, Package, Pause, Script};
        let fields: [(&str, bool, &[ActionName]); 17] = [
            ("run", table.run.is_some(), &[Script]),
            ("file", table.file.is_some(), &[Script]),
            ("interpreter", table.interpreter.is_some(), &[Script]),
            ("scripts", table.scripts.is_some(), &[Script]),
            ("arguments", table.arguments.is_some(), &[Script]),
            ("inputs", table.inputs.is_some(), &[Script]),
            ("packages", table.packages.is_some(), &[Script]),
            ("package", table.package.is_some(), &[Package]),
            ("message", table.message.is_some(), &[Pause]),
            ("roles", !table.roles.is_empty(), &[Script, HealthCheck, Package]),
            ("isolation", table.isolation.is_some(), &[Script, Package]),
            ("max_parallelism", table.max_parallelism.is_some(), &[Script, HealthCheck, Package]),
            ("timeout", table.timeout.is_some(), &[Script, HealthCheck, Package, Pause]),
            ("queue_timeout", table.queue_timeout.is_some(), &[Script, Package]),
            ("away_limit", table.away_limit.is_some(), &[Script, HealthCheck, Package]),
            ("repeatable", table.repeatable, &[Script, HealthCheck, Package]),
            ("retry", table.retry.is_some(), &[Script, HealthCheck, Package]),
        ];
        for (field, is_there, _) in
            fields.iter().filter(|(_, is_there, actions)| *is_there && !actions.contains(&action))
        {
            debug_assert!(is_there, "filtered");
            self.refuse(field, format!("means nothing for a step that is a {}", word(action)));
        }
    }

    fn retry(&mut self, table: &mut StepTable) -> Option<Retry> {
        let RetryTable { times, delay, max_delay } = table.retry.take()?;
        if !table.repeatable {
            let problem = self.refuse("retry", "is for steps that may be repeated");
            problem.hint = Some("say `repeatable = true` if it does no harm twice".to_owned());
        }
        if times > MAX_REPETITIONS {
            self.refuse("retry.times", format!("is {times}, but must be 1 to {MAX_REPETITIONS}"));
        }
        let mut time = |field, text: Option<String>, default| match text {
            Some(text) => self.take(field, limit::time(&text)),
            None => Some(default),
        };
        let delay = time("retry.delay", delay, DEFAULT_DELAY)?;
        let max_delay = time("retry.max_delay", max_delay, DEFAULT_MAX_DELAY.max(delay))?;
        Some(Retry { times: NonZeroU32::new(times)?, delay, max_delay })
    }

    fn work(&mut self, action: ActionName, table: &mut StepTable) -> Option<Work> {
        match action {
            ActionName::HealthCheck => Some(Work::HealthCheck),
            ActionName::Package => {
                let id = table.package.take();
                let id = id.ok_or("is missing: the id of one of [[packages]]".to_owned());
                Some(Work::Package { id: self.take("package", id)? })
            }
            ActionName::Pause => {
                let message = table.message.take().filter(|text| !text.trim().is_empty());
                let message = message.ok_or("is missing: what to look at".to_owned());
                Some(Work::Pause { message: self.take("message", message)? })
            }
            ActionName::Script => self.script(table).map(Work::Script),
        }
    }

    fn script(&mut self, table: &mut StepTable) -> Option<ScriptWork> {
        let inputs = table.inputs.take().unwrap_or_default();
        for name in inputs.keys() {
            self.take(&below("inputs", name), check_input(name));
        }
        let sources = match table.scripts.take() {
            None => {
                let interpreter = table.interpreter.take();
                let interpreter = interpreter.unwrap_or_else(|| DEFAULT_INTERPRETER.to_owned());
                let one = ScriptTable { run: table.run.take(), file: table.file.take() };
                vec![self.source(interpreter, one, "")?]
            }
            Some(_)
                if table.run.is_some() || table.file.is_some() || table.interpreter.is_some() =>
            {
                self.refuse("scripts", "stands instead of `run`, `file` and `interpreter`");
                return None;
            }
            Some(scripts) if scripts.is_empty() => {
                self.refuse("scripts", "is empty: there is nothing to run");
                return None;
            }
            Some(scripts) => {
                let mut sources = Vec::new();
                for (interpreter, one) in scripts {
                    let field = below("scripts", &interpreter);
                    sources.extend(self.source(interpreter, one, &field));
                }
                sources
            }
        };
        let arguments = table.arguments.take().unwrap_or_default();
        let packages = table.packages.take().unwrap_or_default();
        Some(ScriptWork { sources, arguments, inputs, packages })
    }

    fn source(
        &mut self,
        interpreter: String,
        table: ScriptTable,
        field: &str,
    ) -> Option<ScriptSource> {
        let name = if field.is_empty() { "interpreter" } else { field };
        let is_relative = interpreter.contains('/') && !interpreter.starts_with('/');
        if check_word(&interpreter).is_err() || is_relative {
            let text = format!("{interpreter:?} is neither a name in PATH nor an absolute path");
            self.refuse(name, text);
        }
        let key = if field.is_empty() { self.key.clone() } else { format!("{}.{field}", self.key) };
        let (source, part) = match (table.run, table.file) {
            (Some(text), None) if !text.trim().is_empty() => (Source::Text(text), "run"),
            (None, Some(path)) if !path.trim().is_empty() => {
                (Source::File(PathBuf::from(path)), "file")
            }
            (Some(_), Some(_)) => {
                self.refuse(field, "has `run` and `file`; one of them is enough");
                return None;
            }
            (Some(_), None) | (None, Some(_)) => {
                self.refuse(field, "is empty: there is nothing to run");
                return None;
            }
            (None, None) => {
                let problem = self.refuse(field, "has nothing to do");
                let hint = "give `run = \"…\"` or `file = \"…\"`, or an `action`";
                problem.hint = Some(hint.to_owned());
                return None;
            }
        };
        Some(ScriptSource { interpreter, source, key: format!("{key}.{part}") })
    }
}

fn word(action: ActionName) -> &'static str {
    match action {
        ActionName::Script => "script",
        ActionName::HealthCheck => "health-check",
        ActionName::Package => "package",
        ActionName::Pause => "pause",
    }
}

/// Checks the name of an environment variable.
fn check_input(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.len() > 256 || !name.chars().all(is_plain) {
        return Err("is no name of an environment variable: A-Z a-z 0-9 _".to_owned());
    }
    if name.starts_with("BATON_") || name.starts_with(super::variables::PREFIX) {
        return Err("begins as baton's own variables do".to_owned());
    }
    Ok(())
}
