//! Pure: `targets.toml`, the machines that are known by name, and who of them takes part in what.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use super::address::is_host_and_port;
use super::document::{self, Places, below};
use super::limit;
use super::plan::TargetKind;
use super::problem::{Problem, Problems};
use crate::mutex::Mode;
use crate::script::{check_name, check_text};
use crate::trust::Fingerprint;

/// The JSON Schema of the file.
pub const SCHEMA: &str = include_str!("../../share/schema/targets.json");
/// The longest name of a target, in bytes: it is a part of script ids.
pub const MAX_NAME_BYTES: usize = 64;
/// The longest name of an environment, role, tenant, step or project, in bytes.
pub const MAX_WORD_BYTES: usize = 128;

/// Machines that baton deploys to.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct TargetsFile {
    /// The machines, each by its name.
    #[serde(default)]
    targets: BTreeMap<String, TargetTable>,
}

/// A machine with an agent.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct TargetTable {
    /// HOST:PORT of its agent.
    address: String,
    /// The SHA-256 fingerprint of its agent's certificate; `baton agent init` prints it there.
    fingerprint: String,
    /// What it is. Scripts on a worker bypass the machine mutex, unless
    /// `OctopusBypassDeploymentMutex` is False.
    #[serde(default)]
    kind: TargetKind,
    /// The environments that it belongs to; none: nothing is deployed to it.
    #[serde(default)]
    environments: Vec<String>,
    /// What it is there for; steps choose targets by role.
    #[serde(default)]
    roles: Vec<String>,
    /// The tenants whose deployments it takes; none: it takes all.
    #[serde(default)]
    tenants: Vec<String>,
    /// The interpreters that it has, the preferred one first; none: any.
    #[serde(default)]
    interpreters: Vec<String>,
    /// What its scripts may use.
    #[serde(default)]
    limits: LimitsTable,
}

/// Limits of a target.
#[derive(Debug, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    /// How many scripts that bypass run there at once, 1 to 256.
    #[cfg_attr(test, schemars(range(min = 1)))]
    at_most: Option<u32>,
    /// The longest time that a script runs there, for example `10m`.
    timeout: Option<String>,
    /// The longest time that a script waits there for its turn, for example `1h`.
    queue_timeout: Option<String>,
    /// How long its agent is waited for when it is away, for example `30m` for a machine that is slow to start.
    away_limit: Option<String>,
}

/// A machine with an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// `HOST:PORT`
    pub address: String,
    /// Its certificate's.
    pub fingerprint: Fingerprint,
    /// What it is.
    pub kind: TargetKind,
    /// The environments that it belongs to.
    pub environments: Vec<String>,
    /// What it is there for.
    pub roles: Vec<String>,
    /// The tenants whose deployments it takes; empty: all.
    pub tenants: Vec<String>,
    /// The interpreters that it has, the preferred one first; empty: any.
    pub interpreters: Vec<String>,
    /// What its scripts may use.
    pub limits: Limits,
}

/// What scripts on a target may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// How many that bypass run at once.
    pub at_most: Option<NonZeroU32>,
    /// How long one runs.
    pub run_time: Option<Duration>,
    /// How long one waits.
    pub queue_time: Option<Duration>,
    /// How long its agent is waited for when it is away.
    pub away: Option<Duration>,
}

/// All machines, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    file: String,
    targets: Vec<Target>,
}

impl Targets {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// Everything in it that is not allowed.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        let (read, places) = document::read::<TargetsFile>(file, text, SCHEMA)?;
        let mut problems = Vec::new();
        let mut targets = Vec::new();
        for (name, table) in read.targets {
            let key = below("targets", &name);
            let line = places.line(&key);
            let target = Checking { places: &places, problems: &mut problems }.target(name, table);
            targets.extend(target.map(|target| (line, target)));
        }
        Problems::none_of(problems)?;
        targets.sort_by_key(|(line, _)| *line);
        let targets = targets.into_iter().map(|(_, target)| target).collect();
        Ok(Self { file: file.to_owned(), targets })
    }

    /// The file that they are from.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All of them, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Target> + Clone {
        self.targets.iter()
    }

    /// The first of them, with these addresses and fingerprints instead of their own.
    #[must_use]
    pub fn stood_for_by(mut self, machines: &[(String, Fingerprint)]) -> Self {
        self.targets.truncate(machines.len());
        for (target, (address, fingerprint)) in self.targets.iter_mut().zip(machines) {
            target.address.clone_from(address);
            target.fingerprint = *fingerprint;
        }
        self
    }

    /// A target by its name.
    pub fn named(&self, name: &str) -> Option<&Target> {
        self.targets.iter().find(|target| target.name == name)
    }
}

impl Target {
    /// Whether it has a role.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|own| own == role)
    }

    /// Whether it takes part in deployments to this environment, for this tenant.
    pub fn takes(&self, environment: &str, tenant: Option<&str>) -> bool {
        let is_in = self.environments.iter().any(|own| own == environment);
        let is_for = tenant.is_some_and(|tenant| self.tenants.iter().any(|own| own == tenant));
        is_in && (self.tenants.is_empty() || is_for)
    }
}

/// Checks tables one after the other and keeps what is wrong.
struct Checking<'a> {
    places: &'a Places,
    problems: &'a mut Vec<Problem>,
}

impl Checking<'_> {
    /// The value, or a problem with the key.
    fn take<T>(&mut self, key: &str, value: Result<T, String>) -> Option<T> {
        let refused = |message| self.problems.push(self.places.problem(key, message));
        value.map_err(refused).ok()
    }

    fn words(&mut self, key: &str, words: &[String]) {
        for (at, word) in words.iter().enumerate() {
            self.take(&format!("{key}[{at}]"), check_word(word));
        }
    }

    fn target(&mut self, name: String, table: TargetTable) -> Option<Target> {
        let key = below("targets", &name);
        let of = |field: &str| format!("{key}.{field}");
        self.take(&key, check_name(&name, MAX_NAME_BYTES).map_err(|e| format!("the name {e}")))?;
        let address = if is_host_and_port(&table.address) {
            Ok(())
        } else {
            Err(format!("is {:?}, but must be HOST:PORT, for example web-1:10950", table.address))
        };
        self.take(&of("address"), address);
        let fingerprint = table.fingerprint.parse::<Fingerprint>();
        let fingerprint = self.take(&of("fingerprint"), fingerprint.map_err(|e| e.to_string()));
        self.words(&of("environments"), &table.environments);
        self.words(&of("roles"), &table.roles);
        self.words(&of("tenants"), &table.tenants);
        self.words(&of("interpreters"), &table.interpreters);
        let LimitsTable { at_most, timeout, queue_timeout, away_limit } = table.limits;
        let at_most = at_most.and_then(|n| self.take(&of("limits.at_most"), at_most_of(n)));
        let mut time = |field, text: Option<String>| {
            text.and_then(|text| self.take(&of(field), limit::time(&text)))
        };
        let run_time = time("limits.timeout", timeout);
        let queue_time = time("limits.queue_timeout", queue_timeout);
        let away =
            away_limit.and_then(|text| self.take(&of("limits.away_limit"), limit::away(&text)));
        Some(Target {
            name,
            address: table.address,
            fingerprint: fingerprint?,
            kind: table.kind,
            environments: table.environments,
            roles: table.roles,
            tenants: table.tenants,
            interpreters: table.interpreters,
            limits: Limits { at_most, run_time, queue_time, away },
        })
    }
}

fn at_most_of(number: u32) -> Result<NonZeroU32, String> {
    let number = NonZeroU32::new(number).filter(|n| n.get() <= Mode::MAX_AT_MOST);
    number.ok_or_else(|| format!("must be 1 to {}", Mode::MAX_AT_MOST))
}

/// Checks the name of an environment, a role, a tenant, a step or a project.
pub(super) fn check_word(word: &str) -> Result<(), String> {
    if word.trim() != word || word.is_empty() {
        return Err("is empty, or has blanks at its ends".to_owned());
    }
    check_text(word, MAX_WORD_BYTES).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint() -> String {
        "ab".repeat(32)
    }

    #[test]
    fn targets_come_in_the_order_of_the_file() {
        let f = fingerprint();
        let text = format!(
            "[targets.web-2]\naddress = 'web-2:1'\nfingerprint = '{f}'\nroles = ['web']\n\
             [targets.web-1]\naddress = 'web-1:1'\nfingerprint = '{f}'\nkind = 'worker'\n\
             environments = ['Test']\ntenants = ['acme']\ninterpreters = ['pwsh']\n\
             limits = {{ at_most = 2, timeout = '10m', queue_timeout = '1h', away_limit = '30m' }}\n"
        );
        let targets = Targets::parse("targets.toml", &text).unwrap();
        let names: Vec<_> = targets.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["web-2", "web-1"]);
        let one = targets.named("web-1").unwrap();
        assert_eq!((one.kind, one.limits.at_most), (TargetKind::Worker, NonZeroU32::new(2)));
        assert_eq!(one.limits.run_time, Some(Duration::from_mins(10)));
        assert_eq!(one.limits.away, Some(Duration::from_mins(30)));
        assert!(targets.named("web-2").unwrap().has_role("web"));
        assert!(targets.named("web-3").is_none());
    }

    #[test]
    fn a_tenant_s_target_takes_only_what_is_for_the_tenant() {
        let f = fingerprint();
        let text = format!(
            "[targets]\n\
             a = {{ address = 'a:1', fingerprint = '{f}', environments = ['Test'] }}\n\
             b = {{ address = 'b:1', fingerprint = '{f}', environments = ['Test'], tenants = ['t'] }}\n"
        );
        let targets = Targets::parse("targets.toml", &text).unwrap();
        let taking = |environment, tenant| {
            let taking = targets.iter().filter(|target| target.takes(environment, tenant));
            taking.map(|target| target.name.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(taking("Test", None), ["a"]);
        assert_eq!(taking("Test", Some("t")), ["a", "b"]);
        assert_eq!(taking("Test", Some("u")), ["a"]);
        assert!(taking("Production", None).is_empty());
    }

    #[test]
    fn all_that_is_wrong_is_told() {
        let text = format!(
            "[targets.a]\naddress = 'a'\nfingerprint = 'xyz'\nroles = ['web', '']\n\
             [targets.b]\naddress = 'b:1'\nfingerprint = '{}'\nlimits.at_most = 257\n\
             limits.timeout = 'soon'\nlimits.away_limit = '0s'\n[targets.\"c d\"]\naddress = 'c:1'\nfingerprint = ''\n",
            fingerprint()
        );
        let problems = Targets::parse("targets.toml", &text).unwrap_err();
        let told: Vec<_> = problems.iter().map(|p| (p.line.unwrap(), p.key.as_str())).collect();
        let expected = [
            (2, "targets.a.address"),
            (3, "targets.a.fingerprint"),
            (4, "targets.a.roles[1]"),
            (8, "targets.b.limits.at_most"),
            (9, "targets.b.limits.timeout"),
            (10, "targets.b.limits.away_limit"),
            (11, "targets.\"c d\""),
        ];
        assert_eq!(told, expected, "{problems}");
    }
}
