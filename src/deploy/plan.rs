//! Pure: what a deployment is going to do. A plan is the whole truth for an executor: it asks no
//! file, no variable and no scope any more. Serialised, it is what `--json` prints: secrets are left out.
//!
//! 1. First all of [`Plan::acquisitions`], at most `parallelism` at once; no step starts before.
//! 2. Then the stages, one after the other. The steps of a stage run side by side, at most
//!    [`Stage::parallelism`] at once.
//! 3. The targets go in waves, the canaries first: a wave goes through all stages before the next
//!    begins. Within a wave at most [`PlannedStep::parallelism`] jobs of a step run at once.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::value::Value;
use crate::script::{Labels, NameError, ScriptId};
use crate::trust::Fingerprint;

/// What a deployment is going to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The project's name.
    pub project: String,
    /// The environment's name.
    pub environment: String,
    /// The tenant's name.
    pub tenant: Option<String>,
    /// The release, as the request calls it.
    pub release: Option<String>,
    /// Deployments with the same tag never run together.
    pub concurrency_tag: String,
    /// Where deployments of several orchestrators exclude each other: etcd endpoints; none: a named
    /// mutex on this machine.
    pub etcd: Vec<String>,
    /// The machines that take part, canaries first.
    pub targets: Vec<PlannedTarget>,
    /// How many targets may fail, over the whole roll-out: one more ends it.
    pub max_failures: u32,
    /// What a target that can't be reached is.
    pub unreachable: Unreachable,
    /// In which groups the targets go through all stages, one group after the other.
    pub waves: Vec<Wave>,
    /// The packages that are brought to targets before anything else.
    pub acquisitions: Acquisitions,
    /// What runs, one stage after the other.
    pub stages: Vec<Stage>,
    /// What somebody may not have expected: steps and targets without work, unused packages.
    pub remarks: Vec<String>,
}

/// A machine that takes part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedTarget {
    /// Its name in `targets.toml`.
    pub name: String,
    /// `HOST:PORT`
    pub address: String,
    /// Its certificate's.
    pub fingerprint: Fingerprint,
    /// What it is.
    pub kind: TargetKind,
    /// Whether it goes first.
    pub is_canary: bool,
    /// How long its agent is waited for when it is away while packages are brought.
    #[serde(rename = "away_limit_seconds", serialize_with = "seconds")]
    pub away_limit: Duration,
}

/// What a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// Something is deployed to it: scripts run alone, unless they bypass.
    #[default]
    Machine,
    /// It works for others: scripts bypass, unless `OctopusBypassDeploymentMutex` is `False`.
    Worker,
}

/// What becomes of a target that can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Unreachable {
    /// The deployment fails before the first step.
    #[default]
    Fail,
    /// The deployment goes on without it, and says so.
    Exclude,
}

/// Packages and where they go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Acquisitions {
    /// How many run at once.
    pub parallelism: NonZeroU32,
    /// Each package of each target.
    pub packages: Vec<Acquisition>,
}

/// One package of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Acquisition {
    /// Which machine.
    pub target: String,
    /// The package's id.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Where it is on the orchestrator's machine.
    pub source: PackageSource,
}

/// A package on the orchestrator's machine. A relative path is one of the current folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PackageSource {
    /// An archive.
    File(PathBuf),
    /// A folder with all that is in it.
    Directory(PathBuf),
}

/// Steps that run side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// How many of its steps run at once.
    pub parallelism: NonZeroU32,
    /// In the order of the file.
    pub steps: Vec<PlannedStep>,
}

/// A step and where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedStep {
    /// Its place in the file, from 1.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// When it runs.
    pub condition: Condition,
    /// What it does.
    pub action: Action,
    /// On how many machines it runs at once.
    pub parallelism: NonZeroU32,
    /// How often it may be tried again; `None`: it must not be repeated.
    pub retry: Option<Retry>,
    /// One for each target, in the order of [`Plan::targets`]. Empty: for a pause, which has none, and for
    /// a step that no target matches.
    pub jobs: Vec<Job>,
}

/// When a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// When all before it succeeded.
    #[default]
    Success,
    /// When something before it failed.
    Failure,
    /// Whatever happened before.
    Always,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// Runs a script on each target.
    Script,
    /// Asks each target how it is.
    HealthCheck,
    /// Makes a version of a package the current one on each target.
    Package {
        /// The package's id.
        package: String,
    },
    /// Waits until somebody lets it go on. It has no targets.
    Pause {
        /// What that person is told.
        message: String,
    },
}

/// How a step is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// How often, after the first time.
    pub times: NonZeroU32,
    /// The time before the first repetition; it doubles with each.
    #[serde(rename = "delay_seconds", serialize_with = "seconds")]
    pub delay: Duration,
    /// The longest time before a repetition.
    #[serde(rename = "max_delay_seconds", serialize_with = "seconds")]
    pub max_delay: Duration,
}

impl Retry {
    /// How long to wait before the `repetition`th repetition, from 1; `None`: it is not tried again.
    pub fn wait_before(&self, repetition: u32) -> Option<Duration> {
        if repetition == 0 || repetition > self.times.get() {
            return None;
        }
        let factor = 2_u32.saturating_pow(repetition - 1);
        Some(self.delay.saturating_mul(factor).min(self.max_delay))
    }
}

/// Targets that go through all stages before those of the next wave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wave {
    /// Whether these are the canaries: none of them may fail.
    pub is_canary: bool,
    /// Their names.
    pub targets: Vec<String>,
}

/// A step on one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Which machine.
    pub target: String,
    /// Its claim on the machine.
    pub isolation: Isolation,
    /// What runs; `None`: for built-in steps.
    pub script: Option<Script>,
    /// The script's arguments.
    pub arguments: Vec<Value>,
    /// The script's environment variables, by their names there.
    pub environment: BTreeMap<String, Value>,
    /// The package's version, for [`Action::Package`].
    pub package_version: Option<String>,
    /// How long it may run.
    #[serde(rename = "run_time_limit_seconds", serialize_with = "optional_seconds")]
    pub run_time_limit: Option<Duration>,
    /// How long it may wait for its turn.
    #[serde(rename = "queue_time_limit_seconds", serialize_with = "optional_seconds")]
    pub queue_time_limit: Option<Duration>,
    /// How long its agent is waited for when it is away.
    #[serde(rename = "away_limit_seconds", serialize_with = "seconds")]
    pub away_limit: Duration,
    /// Project, environment, tenant, release, step, target. The executor adds `run`.
    pub labels: Labels,
}

/// A job's claim on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Isolation {
    /// It runs alone.
    Exclusive,
    /// It runs beside others that bypass.
    Bypass {
        /// At most so many at once, itself included.
        at_most: Option<NonZeroU32>,
    },
    /// The deployment has the machine alone, from its first such step there to its last.
    Deployment,
    /// It takes no turn and never waits.
    Observer,
}

/// A script's text and who reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Script {
    /// The program that reads it: a name in the target's PATH, or an absolute path.
    pub interpreter: String,
    /// The text.
    pub body: String,
}

/// The longest name of a run, in bytes: a script id is made of it, a step's number and a target's name.
pub const MAX_RUN_BYTES: usize = 48;

impl PlannedStep {
    /// The script id of this step on a target: the same for the same run, so that a script that was
    /// started is found again and never runs twice.
    ///
    /// # Errors
    /// When `run` is longer than [`MAX_RUN_BYTES`], or has characters that an id can't have.
    pub fn script_id(&self, run: &str, target: &str) -> Result<ScriptId, NameError> {
        crate::script::check_name(run, MAX_RUN_BYTES)?;
        format!("{run}.{}.{target}", self.number).parse()
    }
}

impl Plan {
    /// All steps in their order.
    pub fn steps(&self) -> impl Iterator<Item = &PlannedStep> {
        self.stages.iter().flat_map(|stage| &stage.steps)
    }
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn optional_seconds<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repetition_waits_twice_as_long_up_to_a_limit_and_the_last_is_the_last() {
        let second = Duration::from_secs(1);
        let times = NonZeroU32::new(4).unwrap();
        let retry = Retry { times, delay: second, max_delay: 5 * second };
        let waits: Vec<_> = (0..=5).map(|n| retry.wait_before(n)).collect();
        let expected = [None, Some(second), Some(2 * second), Some(4 * second), Some(5 * second)];
        assert_eq!(waits[..5], expected);
        assert_eq!(waits[5], None);
    }

    #[test]
    fn a_script_id_is_the_same_for_the_same_run() {
        let step = PlannedStep {
            number: 3,
            name: "Deploy".to_owned(),
            condition: Condition::Success,
            action: Action::Script,
            parallelism: NonZeroU32::MIN,
            retry: None,
            jobs: Vec::new(),
        };
        assert_eq!(step.script_id("r1", "web-1").unwrap().as_str(), "r1.3.web-1");
        step.script_id("a/b", "web-1").unwrap_err();
        step.script_id(&"r".repeat(49), "web-1").unwrap_err();
    }
}
