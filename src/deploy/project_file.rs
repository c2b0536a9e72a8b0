//! Pure: the shape of `deploy.toml`, from which its JSON Schema is made. What the shape can't say is
//! checked by [`super::project`], [`super::step`] and [`super::variables`].

use std::collections::BTreeMap;

use serde::Deserialize;

use super::limit::AmountText;
use super::plan::{Condition, Unreachable};

/// A project: what is deployed, in which steps, with which variables.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct ProjectFile {
    /// The project's name.
    pub(super) project: String,
    /// `deployment`: it has each machine alone from its first step there to its last. Steps and
    /// `OctopusBypassDeploymentMutex` may say something else.
    pub(super) isolation: Option<ProjectIsolation>,
    /// How it goes over the targets.
    #[serde(default)]
    pub(super) rollout: RolloutTable,
    /// How deployments of several orchestrators exclude each other.
    #[serde(default)]
    pub(super) coordination: CoordinationTable,
    /// Values by name and scope.
    #[serde(default)]
    pub(super) variables: Vec<VariableTable>,
    /// Files that are brought to targets before the first step.
    #[serde(default)]
    pub(super) packages: Vec<PackageTable>,
    /// What is done, one step after the other.
    #[serde(default)]
    pub(super) steps: Vec<StepTable>,
}

/// How long a project has a machine alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(super) enum ProjectIsolation {
    /// For each script.
    Exclusive,
    /// From its first step to its last.
    Deployment,
}

/// How a deployment goes over its targets.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RolloutTable {
    /// How many targets may fail over the whole roll-out: a number, or a percentage, rounded down. Default: 0.
    pub(super) max_failures: Option<AmountText>,
    /// Which targets go first. Default: none.
    pub(super) canary: Option<CanaryTable>,
    /// How many targets go together: a number, or a percentage of the step's targets, rounded up. Default: all.
    pub(super) batch: Option<AmountText>,
    /// What a target that can't be reached is. Default: fail.
    pub(super) unreachable: Option<Unreachable>,
    /// How long an agent is waited for that is away later on, for example `30m`. Default: 10m.
    pub(super) away_limit: Option<String>,
}

/// The targets that go first.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct CanaryTable {
    /// So many of them, in the order of targets.toml.
    pub(super) count: Option<u32>,
    /// Those with these names.
    pub(super) targets: Option<Vec<String>>,
}

/// How deployments of several orchestrators exclude each other.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct CoordinationTable {
    /// The endpoints of an etcd, for example `http://10.0.0.5:2379`. None: a named mutex of this machine.
    #[serde(default)]
    pub(super) etcd: Vec<String>,
}

/// A value of a variable, and where it holds.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct VariableTable {
    /// The variable's name; the same one may be there for several scopes.
    pub(super) name: String,
    /// The value; `#{Name}` is another variable's, `##{` is a plain `#{`.
    pub(super) value: Option<Scalar>,
    /// A file that the value is in, relative to this file; a newline at its end is left out.
    pub(super) value_file: Option<String>,
    /// The environment variable of `baton deploy` that the value is in.
    pub(super) value_env: Option<String>,
    /// Whether it is a secret, and shown nowhere.
    #[serde(default)]
    pub(super) sensitive: bool,
    /// Where it holds; none: everywhere.
    #[serde(default)]
    pub(super) scope: ScopeTable,
}

/// A value.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub(super) enum Scalar {
    /// A text.
    Text(String),
    /// `true` is the text True, `false` is False.
    Boolean(bool),
    /// A whole number.
    Number(i64),
}

/// Where a value holds: in all kinds that it names. Of several values the one with the most specific scope
/// counts: step before target, role, tenant, environment.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct ScopeTable {
    /// One environment, or several.
    pub(super) environment: Option<Names>,
    /// One role of the target, or several.
    pub(super) role: Option<Names>,
    /// One target, or several.
    pub(super) target: Option<Names>,
    /// One step, or several.
    pub(super) step: Option<Names>,
    /// One tenant, or several.
    pub(super) tenant: Option<Names>,
}

/// A name, or several.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub(super) enum Names {
    /// A name.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// Files that are brought to the targets of the steps that use them.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct PackageTable {
    /// The id: a folder's name.
    pub(super) id: String,
    /// The version, for example `#{Octopus.Release.Number}`.
    pub(super) version: String,
    /// An archive, relative to this file; variables may stand in it.
    pub(super) file: Option<String>,
    /// A folder, relative to this file; variables may stand in it.
    pub(super) directory: Option<String>,
}

/// A step.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct StepTable {
    /// The step's name.
    pub(super) name: String,
    /// What it does. Default: script.
    pub(super) action: Option<ActionName>,
    /// It runs on targets with one of these roles; none: on all.
    #[serde(default)]
    pub(super) roles: Vec<String>,
    /// The script's text.
    pub(super) run: Option<String>,
    /// A file that the script is in, relative to this file.
    pub(super) file: Option<String>,
    /// The program that reads `run` or `file`. Default: bash.
    pub(super) interpreter: Option<String>,
    /// A script for each interpreter, instead of `run` or `file`.
    pub(super) scripts: Option<BTreeMap<String, ScriptTable>>,
    /// Arguments of the script; variables may stand in them.
    pub(super) arguments: Option<Vec<String>>,
    /// Environment variables of the script; variables of the project may stand in their values.
    pub(super) inputs: Option<BTreeMap<String, String>>,
    /// The packages that the script uses.
    pub(super) packages: Option<Vec<String>>,
    /// For the action package: the package whose version becomes the current one.
    pub(super) package: Option<String>,
    /// For the action pause: what whoever lets it go on is told.
    pub(super) message: Option<String>,
    /// `with-previous`: side by side with the step before. Default: after it.
    pub(super) start: Option<Start>,
    /// When it runs. Default: success.
    pub(super) condition: Option<Condition>,
    /// Its claim on the machine. Default: what `OctopusBypassDeploymentMutex` says, else exclusive.
    pub(super) isolation: Option<IsolationName>,
    /// On how many machines it runs at once. Default: `Octopus.Action.MaxParallelism`.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub(super) max_parallelism: Option<u32>,
    /// The longest time that it runs, for example `10m`.
    pub(super) timeout: Option<String>,
    /// The longest time that it waits for its turn, for example `1h`.
    pub(super) queue_timeout: Option<String>,
    /// How long an agent is waited for that is away, for example `30m` for a step that restarts the machine.
    /// Default: what the target says, else the roll-out.
    pub(super) away_limit: Option<String>,
    /// Whether it does no harm when it runs again.
    #[serde(default)]
    pub(super) repeatable: bool,
    /// How it is tried again after a failure; only for what is repeatable.
    pub(super) retry: Option<RetryTable>,
}

/// A script for one interpreter.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct ScriptTable {
    /// The script's text.
    pub(super) run: Option<String>,
    /// A file that the script is in, relative to this file.
    pub(super) file: Option<String>,
}

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(super) enum ActionName {
    /// Runs a script.
    #[default]
    Script,
    /// Asks each target how it is; it takes no turn.
    HealthCheck,
    /// Makes a package's version the current one.
    Package,
    /// Waits until somebody lets it go on.
    Pause,
}

/// When a step starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(super) enum Start {
    /// When the step before has ended everywhere.
    #[default]
    AfterPrevious,
    /// Together with the step before.
    WithPrevious,
}

/// A step's claim on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum IsolationName {
    /// It runs alone.
    Exclusive,
    /// It runs beside others that bypass.
    Bypass,
    /// The deployment has the machine alone, from its first such step there to its last.
    Deployment,
    /// It takes no turn and never waits.
    Observer,
}

/// How a step is tried again.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RetryTable {
    /// How often, after the first time.
    #[cfg_attr(test, schemars(range(min = 1)))]
    pub(super) times: u32,
    /// The time before the first repetition; it doubles with each. Default: 1s.
    pub(super) delay: Option<String>,
    /// The longest time before a repetition. Default: 1m.
    pub(super) max_delay: Option<String>,
}
