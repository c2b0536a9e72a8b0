//! Pure: a request to run a script, checked whole. What is in a [`Spec`] can be run as it stands.

mod lease;
mod secrets;

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::config::MAX_GRACE;
use crate::mutex::{Claim, ExclusiveKey, Mode, MutexName};
use crate::script::{Isolation, Labels, NameError, ScriptId, StragglerPolicy, check_text};
use crate::text::shorten;

pub use lease::{LeaseTerms, OnLeaseEnd};
pub use secrets::{SECRETS_KEY_BYTES, SecretsKey};

/// The longest body, in bytes.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;
/// The longest file beside a script, in bytes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;
/// All files beside a script together, in bytes: the whole request must fit into 4 MiB.
pub const MAX_FILES_BYTES: usize = 3 * 1024 * 1024;
/// How many files may be beside a script.
pub const MAX_FILES: usize = 64;
/// How many arguments, and how many variables, a script may have.
pub const MAX_ARGUMENTS: usize = 1024;
/// The longest argument or value of a variable, in bytes: the kernel's own limit (`MAX_ARG_STRLEN`).
pub const MAX_ARGUMENT_BYTES: usize = 128 * 1024 - 1;
/// The longest name of a program, in bytes: the kernel's own limit (`PATH_MAX`).
pub const MAX_PROGRAM_BYTES: usize = 4096;
/// How many labels a script may have.
pub const MAX_LABELS: usize = 32;
/// The longest key and the longest value of a label, in bytes.
pub const MAX_LABEL_BYTES: (usize, usize) = (63, 256);
/// The longest time limit: a year.
pub const MAX_TIME_LIMIT: Duration = Duration::from_hours(365 * 24);
/// The longest summary, in characters.
const SUMMARY_CHARS: usize = 80;

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A text for an interpreter.
    Body {
        /// The text, byte for byte.
        text: Bytes,
        /// The program that reads it: a name in PATH or an absolute path.
        interpreter: String,
    },
    /// A program that is executed directly: a name in PATH or an absolute path.
    Program(String),
    /// Nothing: it is a lease, which holds its mutexes for other scripts.
    Lease(LeaseTerms),
}

/// A file beside a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecFile {
    /// One path component.
    pub name: String,
    /// Its content.
    pub content: Bytes,
    /// Whether it may be executed.
    pub executable: bool,
}

/// A checked request. Every field means what `ScriptSpec` in `script.proto` says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are documented in script.proto")]
pub struct Spec {
    pub script_id: ScriptId,
    pub what: What,
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
    pub files: Vec<SpecFile>,
    pub working_directory: Option<PathBuf>,
    pub isolation: Isolation,
    pub mutex: MutexName,
    pub exclusive_key: Option<ExclusiveKey>,
    pub queue_time_limit: Option<Duration>,
    pub run_time_limit: Option<Duration>,
    pub grace: Option<Duration>,
    pub labels: Labels,
    pub max_output_bytes: Option<u64>,
    pub stragglers: StragglerPolicy,
    pub service_messages: bool,
    pub reboot_exit_code: Option<NonZeroU8>,
    pub lease: Option<ScriptId>,
    pub sensitive: Vec<String>,
}

/// How much of a field's name is told.
const MAX_FIELD_CHARS: usize = 128;

/// A field that can't be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct SpecError {
    /// The field, as `script.proto` calls it, for example `files["a.txt"].content`.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It must be there.
    #[error("is missing")]
    Missing,
    /// A script must have something to run.
    #[error("is empty: there is nothing to run")]
    EmptyScript,
    /// A name breaks its rules.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It has too many bytes.
    #[error("has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// How many it has.
        size: usize,
        /// How many it may have.
        limit: usize,
    },
    /// It has too many entries.
    #[error("has {count} entries, the limit is {limit}")]
    TooMany {
        /// How many it has.
        count: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A time limit of zero would stop the script before it starts.
    #[error("is zero; leave it out for no limit")]
    ZeroTime,
    /// A time is negative or too long.
    #[error("is out of range: at most {} days", .0.as_secs() / (24 * 60 * 60))]
    TimeRange(Duration),
    /// A path must be absolute.
    #[error("is not an absolute path")]
    NotAbsolute,
    /// Two fields exclude each other, or a value isn't known.
    #[error("{0}")]
    Invalid(&'static str),
}

impl SpecError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<Problem>) -> Self {
        // A bad name may be of any length, and travels in the headers of an answer.
        Self { field: shorten(&field.into(), MAX_FIELD_CHARS), problem: problem.into() }
    }
}

impl Spec {
    /// A script of an interpreter, with a new id: alone under the machine mutex, no limits, nothing
    /// sent along.
    pub fn of_body(text: impl Into<Bytes>, interpreter: &str) -> Self {
        Self {
            script_id: ScriptId::random(),
            what: What::Body { text: text.into(), interpreter: interpreter.to_owned() },
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            files: Vec::new(),
            working_directory: None,
            isolation: Isolation::Exclusive,
            mutex: MutexName::machine(),
            exclusive_key: None,
            queue_time_limit: None,
            run_time_limit: None,
            grace: None,
            labels: Labels::new(),
            max_output_bytes: None,
            stragglers: StragglerPolicy::End,
            service_messages: true,
            reboot_exit_code: None,
            lease: None,
            sensitive: Vec::new(),
        }
    }

    /// A lease with a new id on the machine mutex.
    pub fn of_lease(terms: LeaseTerms) -> Self {
        Self { what: What::Lease(terms), ..Self::of_body("", "") }
    }

    /// Checks what the types don't.
    ///
    /// # Errors
    /// The first field that breaks a rule.
    pub fn check(&self) -> Result<(), SpecError> {
        self.check_what()?;
        self.check_environment()?;
        self.check_files()?;
        self.check_limits()?;
        self.check_labels()?;
        if let Some(path) = &self.working_directory {
            if !path.is_absolute() {
                return Err(SpecError::new("working_directory", Problem::NotAbsolute));
            }
            check_argument("working_directory", &path.to_string_lossy())?;
        }
        if self.isolation == Isolation::Observer && self.exclusive_key.is_some() {
            let problem = Problem::Invalid("can't be had by an observer, which takes no mutex");
            return Err(SpecError::new("exclusive_key", problem));
        }
        self.check_lease()?;
        if let Isolation::Shared { at_most: Some(n) } = self.isolation
            && n.get() > Mode::MAX_AT_MOST
        {
            let problem = Problem::Invalid("is out of range: 1 to 256");
            return Err(SpecError::new("isolation.shared.at_most", problem));
        }
        Ok(())
    }

    fn check_what(&self) -> Result<(), SpecError> {
        match &self.what {
            What::Body { text, interpreter } => {
                if text.trim_ascii().is_empty() {
                    return Err(SpecError::new("body", Problem::EmptyScript));
                }
                limit_bytes("body", text.len(), MAX_BODY_BYTES)?;
                check_program("interpreter", interpreter)?;
            }
            What::Program(program) => check_program("program", program)?,
            What::Lease(_) if self.isolation != Isolation::Exclusive => {
                let problem = Problem::Invalid("is exclusive for a lease");
                return Err(SpecError::new("isolation", problem));
            }
            What::Lease(terms) => terms.check()?,
        }
        limit_count("arguments", self.arguments.len(), MAX_ARGUMENTS)?;
        for (place, argument) in self.arguments.iter().enumerate() {
            check_argument(&format!("arguments[{place}]"), argument)?;
        }
        Ok(())
    }

    fn check_lease(&self) -> Result<(), SpecError> {
        let invalid = |field: &str, text| Err(SpecError::new(field, Problem::Invalid(text)));
        if self.lease.is_none() {
            return Ok(());
        }
        if matches!(self.what, What::Lease(_)) {
            return invalid("lease", "can't be had by a lease");
        }
        if self.isolation == Isolation::Observer {
            return invalid("lease", "can't be had by an observer, which waits for nobody");
        }
        if self.exclusive_key.is_some() {
            return invalid("exclusive_key", "goes with the lease, not with a script under it");
        }
        if self.reboot_exit_code.is_some() {
            return invalid(
                "reboot_exit_code",
                "can't be had under a lease, which ends with the machine's run",
            );
        }
        Ok(())
    }

    fn check_environment(&self) -> Result<(), SpecError> {
        limit_count("environment", self.environment.len(), MAX_ARGUMENTS)?;
        for (name, value) in &self.environment {
            let field = format!("environment[{name:?}]");
            let problem = if name.is_empty() || name.len() > 256 {
                Some("has a name that is not 1 to 256 bytes")
            } else if name.contains(['=', '\0']) {
                Some("has a name with = or NUL")
            } else if name.starts_with("BATON_") {
                Some("is one of baton's own variables")
            } else {
                None
            };
            if let Some(problem) = problem {
                return Err(SpecError::new(field, Problem::Invalid(problem)));
            }
            check_argument(&field, value)?;
        }
        limit_count("sensitive", self.sensitive.len(), MAX_ARGUMENTS)?;
        match self.sensitive.iter().position(|name| !self.environment.contains_key(name)) {
            Some(place) => {
                let problem = Problem::Invalid("is no variable of the environment");
                Err(SpecError::new(format!("sensitive[{place}]"), problem))
            }
            None => Ok(()),
        }
    }

    fn check_files(&self) -> Result<(), SpecError> {
        limit_count("files", self.files.len(), MAX_FILES)?;
        let mut names = std::collections::BTreeSet::new();
        for file in &self.files {
            let field = format!("files[{:?}]", file.name);
            check_file_name(&file.name).map_err(|e| SpecError::new(field.clone(), e))?;
            if !names.insert(&file.name) {
                return Err(SpecError::new(field, Problem::Invalid("is there twice")));
            }
            limit_bytes(&field, file.content.len(), MAX_FILE_BYTES)?;
        }
        limit_bytes("files", self.files.iter().map(|f| f.content.len()).sum(), MAX_FILES_BYTES)
    }

    fn check_limits(&self) -> Result<(), SpecError> {
        for (field, limit) in
            [("queue_time_limit", self.queue_time_limit), ("run_time_limit", self.run_time_limit)]
        {
            match limit {
                Some(Duration::ZERO) => return Err(SpecError::new(field, Problem::ZeroTime)),
                Some(limit) if limit > MAX_TIME_LIMIT => {
                    return Err(SpecError::new(field, Problem::TimeRange(MAX_TIME_LIMIT)));
                }
                _ => {}
            }
        }
        if self.grace.is_some_and(|grace| grace > MAX_GRACE) {
            return Err(SpecError::new("grace", Problem::TimeRange(MAX_GRACE)));
        }
        Ok(())
    }

    fn check_labels(&self) -> Result<(), SpecError> {
        limit_count("labels", self.labels.len(), MAX_LABELS)?;
        let mut variables = std::collections::BTreeSet::new();
        for (key, value) in &self.labels {
            let field = format!("labels[{key:?}]");
            crate::script::check_name(key, MAX_LABEL_BYTES.0)
                .map_err(|e| SpecError::new(field.clone(), e))?;
            check_text(value, MAX_LABEL_BYTES.1).map_err(|e| SpecError::new(field.clone(), e))?;
            if !variables.insert(crate::script::variable(key)) {
                let problem = Problem::Invalid("has the same variable as another label");
                return Err(SpecError::new(field, problem));
            }
        }
        Ok(())
    }

    fn mode(&self) -> Option<Mode> {
        match self.isolation {
            Isolation::Exclusive => Some(Mode::Exclusive),
            Isolation::Shared { at_most: None } => Some(Mode::Shared),
            Isolation::Shared { at_most: Some(n) } => Some(Mode::AtMost(n)),
            Isolation::Observer => None,
        }
    }

    /// The lines of the agent's queue in which it stands: those of its mutexes, or that of its lease.
    pub fn lines(&self) -> Vec<Claim> {
        match (&self.lease, self.mode()) {
            (Some(lease), Some(mode)) => vec![Claim { name: MutexName::for_lease(lease), mode }],
            (Some(_) | None, _) => self.claims(),
        }
    }

    /// The mutexes that it must take to run; one under a lease has them from there.
    pub fn claims(&self) -> Vec<Claim> {
        let Some(mode) = self.mode().filter(|_| self.lease.is_none()) else {
            return Vec::new();
        };
        let key = self.exclusive_key.as_ref();
        let key = key.map(|key| Claim { name: MutexName::for_key(key), mode: Mode::Exclusive });
        [Claim { name: self.mutex.clone(), mode }].into_iter().chain(key).collect()
    }

    /// What runs, in one line for people.
    pub fn summary(&self) -> String {
        let text = match &self.what {
            What::Body { text, .. } => {
                let text = String::from_utf8_lossy(text);
                let lines = text.lines().map(str::trim);
                let telling = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
                telling.take(1).collect()
            }
            What::Program(program) => {
                let words = [program].into_iter().chain(&self.arguments);
                words.map(String::as_str).collect::<Vec<_>>().join(" ")
            }
            What::Lease(terms) => format!("lease, ttl {}", humantime::format_duration(terms.ttl)),
        };
        shorten(&text, SUMMARY_CHARS)
    }

    /// The fields in which another request for the same script id differs.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        // Destructured whole: a new field can't be forgotten here.
        let Self {
            script_id: _,
            what,
            arguments,
            environment,
            files,
            working_directory,
            isolation,
            mutex,
            exclusive_key,
            queue_time_limit,
            run_time_limit,
            grace,
            labels,
            max_output_bytes,
            stragglers,
            service_messages,
            reboot_exit_code,
            lease,
            sensitive,
        } = self;
        let fields = [
            ("body, interpreter or program", what != &other.what),
            ("arguments", arguments != &other.arguments),
            ("environment", environment != &other.environment),
            ("files", files != &other.files),
            ("working_directory", working_directory != &other.working_directory),
            ("isolation", isolation != &other.isolation),
            ("mutex", mutex != &other.mutex),
            ("exclusive_key", exclusive_key != &other.exclusive_key),
            ("queue_time_limit", queue_time_limit != &other.queue_time_limit),
            ("run_time_limit", run_time_limit != &other.run_time_limit),
            ("grace", grace != &other.grace),
            ("labels", labels != &other.labels),
            ("max_output_bytes", max_output_bytes != &other.max_output_bytes),
            ("stragglers", stragglers != &other.stragglers),
            ("service_messages", service_messages != &other.service_messages),
            ("reboot_exit_code", reboot_exit_code != &other.reboot_exit_code),
            ("lease", lease != &other.lease),
            ("sensitive", sensitive != &other.sensitive),
        ];
        fields.into_iter().filter_map(|(field, differs)| differs.then_some(field)).collect()
    }
}

fn limit_bytes(field: &str, size: usize, limit: usize) -> Result<(), SpecError> {
    if size <= limit {
        return Ok(());
    }
    Err(SpecError::new(field, Problem::TooLarge { size, limit }))
}

fn limit_count(field: &str, count: usize, limit: usize) -> Result<(), SpecError> {
    if count <= limit {
        return Ok(());
    }
    Err(SpecError::new(field, Problem::TooMany { count, limit }))
}

fn check_program(field: &str, program: &str) -> Result<(), SpecError> {
    if program.is_empty() {
        return Err(SpecError::new(field, NameError::Empty));
    }
    check_text(program, MAX_PROGRAM_BYTES).map_err(|e| SpecError::new(field, e))?;
    if program.contains('/') && !program.starts_with('/') {
        return Err(SpecError::new(field, Problem::NotAbsolute));
    }
    Ok(())
}

fn check_argument(field: &str, argument: &str) -> Result<(), SpecError> {
    limit_bytes(field, argument.len(), MAX_ARGUMENT_BYTES)?;
    if argument.contains('\0') {
        return Err(SpecError::new(field, Problem::Invalid("has a NUL")));
    }
    Ok(())
}

/// A file's name is one component that leads nowhere else; it may have spaces and accents.
fn check_file_name(name: &str) -> Result<(), NameError> {
    match name {
        "" => Err(NameError::Empty),
        "." | ".." => Err(NameError::LeadingDot),
        _ if name.contains('/') => Err(NameError::Character('/', "one path component")),
        _ => check_text(name, 255),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn spec() -> Spec {
        Spec { script_id: "a".parse().unwrap(), ..Spec::of_body("true", "bash") }
    }

    fn body(text: &str) -> What {
        What::Body { text: Bytes::copy_from_slice(text.as_bytes()), interpreter: "sh".to_owned() }
    }

    fn file(name: &str, size: usize) -> SpecFile {
        SpecFile { name: name.to_owned(), content: vec![0; size].into(), executable: false }
    }

    /// A request's change, and the field that must be refused.
    type BadCase = (fn(&mut Spec), &'static str);

    #[test]
    fn each_bad_field_is_refused_by_name() {
        let cases: &[BadCase] = &[
            (|s| s.what = body(" \n"), "body"),
            (|s| s.what = body(&"x".repeat(MAX_BODY_BYTES + 1)), "body"),
            (|s| s.what = What::Program(String::new()), "program"),
            (|s| s.what = What::Program("./x".to_owned()), "program"),
            (|s| s.arguments = vec!["a\0".to_owned()], "arguments[0]"),
            (|s| s.arguments = vec![String::new(); 1025], "arguments"),
            (|s| drop(s.environment.insert("A=B".into(), String::new())), "environment[\"A=B\"]"),
            (
                |s| drop(s.environment.insert("BATON_X".into(), String::new())),
                "environment[\"BATON_X\"]",
            ),
            (|s| s.files = vec![file("../x", 1)], "files[\"../x\"]"),
            (|s| s.files = vec![file("..", 1)], "files[\"..\"]"),
            (|s| s.files = vec![file("a\nb", 1)], "files[\"a\\nb\"]"),
            (|s| s.files = vec![file("a", 1), file("a", 1)], "files[\"a\"]"),
            (|s| s.files = vec![file("a", MAX_FILE_BYTES + 1)], "files[\"a\"]"),
            (|s| s.working_directory = Some("tmp".into()), "working_directory"),
            (|s| s.queue_time_limit = Some(Duration::ZERO), "queue_time_limit"),
            (|s| s.run_time_limit = Some(Duration::MAX), "run_time_limit"),
            (|s| s.grace = Some(MAX_GRACE * 2), "grace"),
            (|s| drop(s.labels.insert("a/b".into(), String::new())), "labels[\"a/b\"]"),
            (|s| drop(s.labels.insert("a".into(), "x\ny".into())), "labels[\"a\"]"),
            (
                |s| {
                    let value = String::new;
                    s.labels = [("a.b".into(), value()), ("a_b".into(), value())].into();
                },
                "labels[\"a_b\"]",
            ),
            (
                |s| {
                    s.isolation = Isolation::Observer;
                    s.exclusive_key = "k".parse().ok();
                },
                "exclusive_key",
            ),
            (
                |s| s.isolation = Isolation::Shared { at_most: NonZeroU32::new(257) },
                "isolation.shared.at_most",
            ),
        ];
        spec().check().unwrap();
        for (break_it, field) in cases {
            let mut bad = spec();
            break_it(&mut bad);
            assert_eq!(bad.check().unwrap_err().field, *field);
        }
    }

    #[test]
    fn a_difference_is_named() {
        let mut other = spec();
        assert!(spec().differences(&other).is_empty());
        other.mutex = "log".parse().unwrap();
        other.what = body("false");
        assert_eq!(spec().differences(&other), ["body, interpreter or program", "mutex"]);
    }

    #[test]
    fn a_summary_is_the_first_telling_line() {
        let mut spec = spec();
        spec.what = body("#!/bin/sh\n\n  echo hi\t# x\nmore");
        assert_eq!(spec.summary(), "echo hi # x");
        spec.what = body(&"y".repeat(100));
        assert_eq!(spec.summary().chars().count(), SUMMARY_CHARS);
    }
}
