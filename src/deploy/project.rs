//! Pure: `deploy.toml`, a project: its variables, packages and steps, and how it is rolled out.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::document::{self, Places};
use super::limit::{self, Amount};
use super::plan::Unreachable;
use super::problem::{Problem, Problems, did_you_mean};
use super::project_file::{
    CanaryTable, CoordinationTable, PackageTable, ProjectFile, ProjectIsolation, RolloutTable,
};
use super::step::{Source, Step, Work};
use super::targets::check_word;
use super::variables::Variables;
use crate::script::check_name;

/// The JSON Schema of the file.
pub const SCHEMA: &str = include_str!("../../share/schema/deploy.json");
/// The longest id and version of a package, in bytes: each is the name of a folder.
pub const MAX_PACKAGE_BYTES: usize = 128;
/// How many steps a project may have.
pub const MAX_STEPS: usize = 1000;

/// What is deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// Whether it has each machine alone from its first step there to its last.
    pub is_deployment_wide: bool,
    /// How it goes over the targets.
    pub rollout: Rollout,
    /// Where deployments of several orchestrators exclude each other: etcd endpoints.
    pub etcd: Vec<String>,
    /// Its variables.
    pub variables: Variables,
    /// Its packages.
    pub packages: Vec<Package>,
    /// Its steps, in the order of the file.
    pub steps: Vec<Step>,
    /// Where its keys stand.
    pub places: Places,
}

/// How a deployment goes over its targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// How many targets may fail.
    pub max_failures: Amount,
    /// Who goes first.
    pub canary: Canary,
    /// How many targets go together; `None`: all.
    pub batch: Option<Amount>,
    /// What a target that can't be reached is.
    pub unreachable: Unreachable,
    /// How long an agent is waited for that is away, unless step or target say something else.
    pub away: Option<Duration>,
}

/// Which targets go first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Canary {
    /// The first so many.
    Count(u32),
    /// These.
    Targets(Vec<String>),
}

/// Files that are brought to targets before the first step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its id.
    pub id: String,
    /// Its version, with variables.
    pub version: String,
    /// Where it is, with variables, relative to the project file's folder unless absolute.
    pub path: String,
    /// Whether it is a folder, else it is a file.
    pub is_directory: bool,
    /// Its key in the file.
    pub key: String,
}

impl Project {
    /// Reads the text of a file. It reads no other file: scripts and values that are elsewhere are
    /// filled in by [`super::load`].
    ///
    /// # Errors
    /// Everything in it that is not allowed.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        let (read, places) = document::read::<ProjectFile>(file, text, SCHEMA)?;
        let mut problems = Vec::new();
        let mut refuse = |key: &str, message: String| problems.push(places.problem(key, message));
        check_word(&read.project).unwrap_or_else(|message| refuse("project", message));
        let rollout = rollout(read.rollout, &mut refuse);
        let etcd = coordination(read.coordination, &mut refuse);
        let packages: Vec<Package> = read
            .packages
            .into_iter()
            .enumerate()
            .map(|(at, table)| package(at, table, &mut refuse))
            .collect();
        let mut steps = Vec::new();
        if read.steps.len() > MAX_STEPS {
            refuse("steps", format!("are more than {MAX_STEPS}"));
        }
        for (at, table) in read.steps.into_iter().enumerate() {
            match Step::check(at, table, &places) {
                Ok(step) => steps.push(step),
                Err(wrong) => problems.extend(wrong),
            }
        }
        let variables = Variables::check(read.variables, &places, &mut problems);
        let is_deployment_wide = read.isolation == Some(ProjectIsolation::Deployment);
        let name = read.project;
        let project =
            Self { name, is_deployment_wide, rollout, etcd, variables, packages, steps, places };
        // Names are compared when all are known; a broken step would be missed where it is named.
        let is_whole = problems.is_empty();
        project.check_names(is_whole, &mut problems);
        Problems::none_of(problems)?;
        Ok(project)
    }

    fn check_names(&self, is_whole: bool, problems: &mut Vec<Problem>) {
        let ids = self.packages.iter().map(|package| (package.key.as_str(), &package.id));
        twice(ids, &self.places, problems);
        let names = self.steps.iter().map(|step| (step.key.as_str(), &step.name));
        twice(names, &self.places, problems);
        for step in &self.steps {
            for (key, id) in step.packages() {
                if !self.packages.iter().any(|package| package.id == id) {
                    let known = self.packages.iter().map(|package| package.id.as_str());
                    let hint = did_you_mean(id, known);
                    let hint = hint.or_else(|| Some("packages stand in [[packages]]".to_owned()));
                    let message = format!("there is no package {id:?}");
                    problems.push(self.places.problem(key, message).hint(hint));
                }
            }
        }
        if self.steps.first().is_some_and(|step| step.starts_with_previous) {
            let message = "the first step has none before it";
            problems.push(self.places.problem("steps[0].start", message));
        }
        for step in self.steps.iter().filter(|step| step.starts_with_previous) {
            if matches!(step.work, Work::Pause { .. }) {
                // An answer would not say which of two it is for.
                let message = "a pause stands alone: it can't start with the step before";
                problems.push(self.places.problem(format!("{}.start", step.key), message));
            }
        }
        if is_whole {
            self.variables.check_names(self, problems);
        }
    }

    /// A package by its id.
    pub fn package(&self, id: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.id == id)
    }

    /// The folder that its paths are relative to.
    pub fn folder(&self) -> &Path {
        Path::new(self.places.file()).parent().unwrap_or(Path::new(""))
    }

    /// Where the texts of its scripts are: key and source.
    pub fn script_files(&mut self) -> impl Iterator<Item = (&str, &mut Source)> {
        self.steps
            .iter_mut()
            .flat_map(|step| match &mut step.work {
                Work::Script(script) => script.sources.as_mut_slice(),
                Work::HealthCheck | Work::Package { .. } | Work::Pause { .. } => &mut [],
            })
            .map(|one| (one.key.as_str(), &mut one.source))
    }
}

/// Tells what has the name of one before it.
fn twice<'a>(
    named: impl Iterator<Item = (&'a str, &'a String)>,
    places: &Places,
    problems: &mut Vec<Problem>,
) {
    let mut seen = BTreeSet::new();
    for (key, name) in named {
        if !seen.insert(name) {
            problems.push(places.problem(key, format!("{name:?} is there twice")));
        }
    }
}

fn rollout(table: RolloutTable, refuse: &mut impl FnMut(&str, String)) -> Rollout {
    let RolloutTable { max_failures, canary, batch, unreachable, away_limit } = table;
    let none = Amount::Number(0);
    let mut amount =
        |key, text| Amount::parse(&text).map_err(|message| refuse(key, message)).unwrap_or(none);
    let max_failures = max_failures.map_or(none, |text| amount("rollout.max_failures", text));
    let batch = batch.and_then(|text| match Amount::parse(&text) {
        Ok(Amount::Number(0) | Amount::Percent(0)) => {
            refuse("rollout.batch", "is zero; leave it out for all at once".to_owned());
            None
        }
        Ok(batch) => Some(batch),
        Err(message) => {
            refuse("rollout.batch", message);
            None
        }
    });
    let away = away_limit.and_then(|text| {
        limit::away(&text).map_err(|message| refuse("rollout.away_limit", message)).ok()
    });
    let canary = match canary.unwrap_or_default() {
        CanaryTable { count: Some(_), targets: Some(_) } => {
            refuse("rollout.canary", "has count and targets; one of them is enough".to_owned());
            Canary::Count(0)
        }
        CanaryTable { targets: Some(targets), .. } => Canary::Targets(targets),
        CanaryTable { count, .. } => Canary::Count(count.unwrap_or(0)),
    };
    Rollout { max_failures, canary, batch, unreachable: unreachable.unwrap_or_default(), away }
}

fn coordination(table: CoordinationTable, refuse: &mut impl FnMut(&str, String)) -> Vec<String> {
    for (at, endpoint) in table.etcd.iter().enumerate() {
        let is_http = endpoint.starts_with("http://") || endpoint.starts_with("https://");
        if !is_http || check_word(endpoint).is_err() {
            let message = format!("is {endpoint:?}, but must be http://HOST:PORT or https://…");
            refuse(&format!("coordination.etcd[{at}]"), message);
        }
    }
    table.etcd
}

fn package(at: usize, table: PackageTable, refuse: &mut impl FnMut(&str, String)) -> Package {
    let key = format!("packages[{at}]");
    if let Err(error) = check_name(&table.id, MAX_PACKAGE_BYTES) {
        refuse(&format!("{key}.id"), error.to_string());
    }
    let is_directory = table.directory.is_some();
    let path = match (table.file, table.directory) {
        (Some(path), None) | (None, Some(path)) if !path.trim().is_empty() => path,
        (Some(_), Some(_)) => {
            refuse(&key, "has file and directory; one of them is enough".to_owned());
            String::new()
        }
        _ => {
            refuse(&key, "needs `file` or `directory`: where it is".to_owned());
            String::new()
        }
    };
    Package { id: table.id, version: table.version, path, is_directory, key }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line, key and message of each problem.
    fn problems(text: &str) -> Vec<String> {
        let problems = Project::parse("deploy.toml", text).unwrap_err();
        let told = |p: &Problem| format!("{} {}: {}", p.line.unwrap_or(0), p.key, p.message);
        problems.iter().map(told).collect()
    }

    #[test]
    fn a_project_is_read_whole() {
        let text = r##"
project = "web"
isolation = "deployment"
[rollout]
max_failures = "20%"
canary = { count = 1 }
batch = 5
unreachable = "exclude"
[coordination]
etcd = ["http://10.0.0.5:2379"]
[[variables]]
name = "Port"
value = 8080
[[packages]]
id = "web"
version = "#{Octopus.Release.Number}"
file = "dist/web-#{Octopus.Release.Number}.tar.gz"
[[steps]]
name = "Healthy"
action = "health-check"
[[steps]]
name = "Deploy"
roles = ["web"]
scripts = { bash = { run = "true" }, pwsh = { file = "deploy.ps1" } }
inputs = { PORT = "#{Port}" }
packages = ["web"]
repeatable = true
retry = { times = 3, delay = "2s" }
[[steps]]
name = "Warm"
start = "with-previous"
run = "true"
[[steps]]
name = "Look"
action = "pause"
message = "Is all well?"
[[steps]]
name = "Switch"
action = "package"
package = "web"
condition = "always"
"##;
        let project = Project::parse("a/deploy.toml", text).unwrap();
        assert!(project.is_deployment_wide && project.steps[2].starts_with_previous);
        assert_eq!(project.rollout.max_failures, Amount::Percent(20));
        assert_eq!(project.rollout.canary, Canary::Count(1));
        assert_eq!(project.rollout.unreachable, Unreachable::Exclude);
        assert_eq!(project.folder(), Path::new("a"));
        let Work::Script(script) = &project.steps[1].work else { panic!("a script") };
        let interpreters: Vec<_> = script.sources.iter().map(|s| s.interpreter.as_str()).collect();
        assert_eq!(interpreters, ["bash", "pwsh"]);
        assert_eq!(project.steps[1].retry.unwrap().times.get(), 3);
        assert_eq!(project.steps[4].packages(), [("steps[4].package".to_owned(), "web")]);
    }

    #[test]
    fn what_is_wrong_is_told_with_line_and_key_and_all_of_it() {
        let text = r#"project = " "
coordination = { etcd = ["10.0.0.5"] }
[rollout]
max_failures = "many"
batch = 0
canary = { count = 1, targets = ["a"] }
[[packages]]
id = "a/b"
version = "1"
[[packages]]
id = "b"
version = "1"
file = "x"
directory = "y"
[[steps]]
name = "Look"
action = "pause"
roles = ["web"]
message = " "
[[steps]]
name = "Retry"
run = "true"
timeout = "soon"
retry = { times = 1 }
[[steps]]
name = "Nothing"
[[steps]]
name = "Both"
run = "true"
file = "x"
interpreter = "bin/sh"
inputs = { "A B" = "x", VAR_X = "y" }
"#;
        let told = problems(text);
        let expected = [
            "1 project: is empty, or has blanks at its ends",
            "2 coordination.etcd[0]: is \"10.0.0.5\", but must be http://HOST:PORT or https://…",
            "4 rollout.max_failures: is \"many\", but must be a number or a percentage such as \"10%\"",
            "5 rollout.batch: is zero; leave it out for all at once",
            "6 rollout.canary: has count and targets; one of them is enough",
            "7 packages[0]: needs `file` or `directory`: where it is",
            "8 packages[0].id: has the character '/'; allowed are A-Z a-z 0-9 . _ -",
            "10 packages[1]: has file and directory; one of them is enough",
            "18 steps[0].roles: means nothing for a step that is a pause",
            "19 steps[0].message: is missing: what to look at",
            "23 steps[1].timeout: is \"soon\": expected number at 0; for example 90s, 10m, 1h30m",
            "24 steps[1].retry: is for steps that may be repeated",
            "25 steps[2]: has nothing to do",
            "27 steps[3]: has `run` and `file`; one of them is enough",
            "31 steps[3].interpreter: \"bin/sh\" is neither a name in PATH nor an absolute path",
            "32 steps[3].inputs.\"A B\": is no name of an environment variable: A-Z a-z 0-9 _",
            "32 steps[3].inputs.VAR_X: begins as baton's own variables do",
        ];
        assert_eq!(told, expected, "{told:#?}");
    }

    #[test]
    fn names_that_are_nowhere_or_twice_are_told() {
        let text = r#"project = "web"
[[packages]]
id = "web"
version = "1"
file = "x"
[[packages]]
id = "web"
version = "2"
file = "x"
[[steps]]
name = "Deploy"
start = "with-previous"
run = "true"
packages = ["wbe"]
[[steps]]
name = "Deploy"
run = "true"
[[steps]]
name = "Ask"
action = "pause"
message = "well?"
start = "with-previous"
[[variables]]
name = "A"
value = "x"
scope = { step = "Deplyo" }
[[variables]]
name = "Octopus.Action[Deplo].MaxParallelism"
value = 1
"#;
        let expected = [
            "6 packages[1]: \"web\" is there twice",
            "12 steps[0].start: the first step has none before it",
            "14 steps[0].packages[0]: there is no package \"wbe\"",
            "15 steps[1]: \"Deploy\" is there twice",
            "22 steps[2].start: a pause stands alone: it can't start with the step before",
            "26 variables[0].scope.step: there is no step \"Deplyo\"",
            "28 variables[1].name: there is no step \"Deplo\"",
        ];
        assert_eq!(problems(text), expected);
        let problems = Project::parse("deploy.toml", text).unwrap_err();
        let hints: Vec<_> = problems.iter().filter_map(|p| p.hint.as_deref()).collect();
        let [package, step, limit] = hints.as_slice() else { panic!("{hints:?}") };
        assert_eq!(*package, "did you mean \"web\"?");
        assert_eq!((*step, *limit), ("did you mean \"Deploy\"?", "did you mean \"Deploy\"?"));
    }
}
