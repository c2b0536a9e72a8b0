//! Requests: `ScriptSpec` and [`Spec`].

use std::num::{NonZeroU8, NonZeroU32};

use super::{from_duration, to_duration, v1};
use crate::mutex::MutexName;
use crate::script::{Isolation, ScriptId, StragglerPolicy};
use crate::spec::{LeaseTerms, MAX_TIME_LIMIT, Problem, Spec, SpecError, SpecFile, What};

/// The interpreter of a body when the request names none.
const DEFAULT_INTERPRETER: &str = "bash";

impl TryFrom<v1::ScriptSpec> for Spec {
    type Error = SpecError;

    fn try_from(message: v1::ScriptSpec) -> Result<Self, SpecError> {
        // Destructured whole: a new field can't be forgotten here.
        let v1::ScriptSpec {
            script_id,
            what,
            arguments,
            interpreter,
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
        } = message;
        let policy = v1::StragglerPolicy::try_from(stragglers)
            .map_err(|_| SpecError::new("stragglers", Problem::Invalid("is not known")))?;
        let script_id = if script_id.is_empty() {
            ScriptId::random()
        } else {
            script_id.parse().map_err(|e| SpecError::new("script_id", e))?
        };
        let mutex = if mutex.is_empty() {
            MutexName::machine()
        } else {
            mutex.parse().map_err(|e| SpecError::new("mutex", e))?
        };
        let exclusive_key = (!exclusive_key.is_empty()).then(|| exclusive_key.parse()).transpose();
        let spec = Self {
            script_id,
            what: parse_what(what, interpreter)?,
            arguments,
            environment: environment.into_iter().collect(),
            files: files.into_iter().map(SpecFile::from).collect(),
            working_directory: (!working_directory.is_empty()).then(|| working_directory.into()),
            isolation: isolation.map_or(Isolation::Exclusive, Isolation::from),
            mutex,
            exclusive_key: exclusive_key.map_err(|e| SpecError::new("exclusive_key", e))?,
            queue_time_limit: parse_time("queue_time_limit", queue_time_limit)?,
            run_time_limit: parse_time("run_time_limit", run_time_limit)?,
            grace: parse_time("grace", grace)?,
            labels: labels.into_iter().collect(),
            max_output_bytes: (max_output_bytes > 0).then_some(max_output_bytes),
            stragglers: policy.into(),
            service_messages: service_messages.unwrap_or(true),
            reboot_exit_code: parse_exit_code(reboot_exit_code)?,
            lease: parse_lease(&lease)?,
            sensitive,
        };
        spec.check()?;
        Ok(spec)
    }
}

fn parse_what(what: Option<v1::script_spec::What>, interpreter: String) -> Result<What, SpecError> {
    match what {
        Some(v1::script_spec::What::Body(text)) => {
            let default = || DEFAULT_INTERPRETER.to_owned();
            let interpreter = if interpreter.is_empty() { default() } else { interpreter };
            Ok(What::Body { text, interpreter })
        }
        Some(v1::script_spec::What::Program(_)) if !interpreter.is_empty() => Err(SpecError::new(
            "interpreter",
            Problem::Invalid("goes with a body, not with a program"),
        )),
        Some(v1::script_spec::What::Program(program)) => Ok(What::Program(program)),
        Some(v1::script_spec::What::LeaseTerms(v1::LeaseTerms { ttl, reason })) => {
            let ttl = parse_time("ttl", ttl)?.unwrap_or(LeaseTerms::DEFAULT_TTL);
            Ok(What::Lease(LeaseTerms { ttl, reason }))
        }
        None => Err(SpecError::new("body or program", Problem::Missing)),
    }
}

fn parse_lease(id: &str) -> Result<Option<ScriptId>, SpecError> {
    let parse = || id.parse().map_err(|e| SpecError::new("lease", e));
    (!id.is_empty()).then(parse).transpose()
}

fn parse_exit_code(code: u32) -> Result<Option<NonZeroU8>, SpecError> {
    let problem = Problem::Invalid("is out of range: 1 to 255");
    let code = u8::try_from(code).map_err(|_| SpecError::new("reboot_exit_code", problem))?;
    Ok(NonZeroU8::new(code))
}

fn parse_time(
    field: &str,
    time: Option<prost_types::Duration>,
) -> Result<Option<std::time::Duration>, SpecError> {
    let parse = |time| {
        from_duration(time).ok_or_else(|| SpecError::new(field, Problem::TimeRange(MAX_TIME_LIMIT)))
    };
    time.map(parse).transpose()
}

impl From<Spec> for v1::ScriptSpec {
    fn from(spec: Spec) -> Self {
        let (what, interpreter) = match spec.what {
            What::Body { text, interpreter } => (v1::script_spec::What::Body(text), interpreter),
            What::Program(program) => (v1::script_spec::What::Program(program), String::new()),
            What::Lease(terms) => (v1::script_spec::What::LeaseTerms(terms.into()), String::new()),
        };
        let directory = spec.working_directory.map(|path| path.to_string_lossy().into_owned());
        Self {
            script_id: spec.script_id.into(),
            what: Some(what),
            arguments: spec.arguments,
            interpreter,
            environment: spec.environment.into_iter().collect(),
            files: spec.files.into_iter().map(v1::ScriptFile::from).collect(),
            working_directory: directory.unwrap_or_default(),
            isolation: Some(spec.isolation.into()),
            mutex: spec.mutex.into(),
            exclusive_key: spec.exclusive_key.map(String::from).unwrap_or_default(),
            queue_time_limit: spec.queue_time_limit.map(to_duration),
            run_time_limit: spec.run_time_limit.map(to_duration),
            grace: spec.grace.map(to_duration),
            labels: spec.labels.into_iter().collect(),
            max_output_bytes: spec.max_output_bytes.unwrap_or(0),
            stragglers: match spec.stragglers {
                // As if it was not said: an older request is the same one.
                StragglerPolicy::End => v1::StragglerPolicy::Unspecified.into(),
                StragglerPolicy::Keep => v1::StragglerPolicy::Keep.into(),
            },
            // The default is left out: a request reads as it did before there was the field.
            service_messages: (!spec.service_messages).then_some(false),
            reboot_exit_code: spec.reboot_exit_code.map_or(0, |code| code.get().into()),
            lease: spec.lease.map(String::from).unwrap_or_default(),
            sensitive: spec.sensitive,
        }
    }
}

impl TryFrom<v1::OpenLeaseRequest> for Spec {
    type Error = SpecError;

    fn try_from(message: v1::OpenLeaseRequest) -> Result<Self, SpecError> {
        // Destructured whole: a new field can't be forgotten here.
        let v1::OpenLeaseRequest {
            lease_id,
            mutex,
            exclusive_key,
            ttl,
            reason,
            labels,
            queue_time_limit,
        } = message;
        Self::try_from(v1::ScriptSpec {
            script_id: lease_id,
            what: Some(v1::script_spec::What::LeaseTerms(v1::LeaseTerms { ttl, reason })),
            mutex,
            exclusive_key,
            labels,
            queue_time_limit,
            ..v1::ScriptSpec::default()
        })
    }
}

impl From<v1::ScriptFile> for SpecFile {
    fn from(v1::ScriptFile { name, content, executable }: v1::ScriptFile) -> Self {
        Self { name, content, executable }
    }
}

impl From<SpecFile> for v1::ScriptFile {
    fn from(SpecFile { name, content, executable }: SpecFile) -> Self {
        Self { name, content, executable }
    }
}

impl From<v1::Isolation> for Isolation {
    fn from(message: v1::Isolation) -> Self {
        match message.kind {
            None | Some(v1::isolation::Kind::Exclusive(v1::Exclusive {})) => Self::Exclusive,
            Some(v1::isolation::Kind::Shared(v1::Shared { at_most })) => {
                Self::Shared { at_most: NonZeroU32::new(at_most) }
            }
            Some(v1::isolation::Kind::Observer(v1::Observer {})) => Self::Observer,
        }
    }
}

impl From<Isolation> for v1::Isolation {
    fn from(isolation: Isolation) -> Self {
        let kind = match isolation {
            Isolation::Exclusive => v1::isolation::Kind::Exclusive(v1::Exclusive {}),
            Isolation::Shared { at_most } => {
                let at_most = at_most.map_or(0, NonZeroU32::get);
                v1::isolation::Kind::Shared(v1::Shared { at_most })
            }
            Isolation::Observer => v1::isolation::Kind::Observer(v1::Observer {}),
        };
        Self { kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{decode_stored, encode_spec};

    fn message() -> v1::ScriptSpec {
        v1::ScriptSpec {
            script_id: "a".to_owned(),
            what: Some(v1::script_spec::What::Body("true".into())),
            ..v1::ScriptSpec::default()
        }
    }

    #[test]
    fn the_defaults_are_those_that_the_api_names() {
        let spec = Spec::try_from(message()).unwrap();
        let What::Body { interpreter, .. } = &spec.what else { panic!("no body") };
        assert_eq!(interpreter, "bash");
        assert_eq!(spec.isolation, Isolation::Exclusive);
        assert_eq!(spec.mutex, MutexName::machine());
        assert_eq!((spec.run_time_limit, spec.service_messages), (None, true));
    }

    #[test]
    fn a_request_reads_back_as_it_was() {
        let full = v1::ScriptSpec {
            arguments: vec!["x y".to_owned()],
            environment: [("A".to_owned(), "1".to_owned())].into(),
            files: vec![v1::ScriptFile {
                name: "f".to_owned(),
                content: "c".into(),
                executable: true,
            }],
            working_directory: "/tmp".to_owned(),
            isolation: Some(Isolation::Shared { at_most: NonZeroU32::new(2) }.into()),
            mutex: "log".to_owned(),
            exclusive_key: "web/prod".to_owned(),
            queue_time_limit: Some(prost_types::Duration { seconds: 1, nanos: 5 }),
            run_time_limit: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
            grace: Some(prost_types::Duration::default()),
            labels: [("project".to_owned(), "web".to_owned())].into(),
            service_messages: Some(false),
            reboot_exit_code: 255,
            sensitive: vec!["A".to_owned()],
            ..message()
        };
        let spec = Spec::try_from(full).unwrap();
        assert_eq!(decode_stored(&encode_spec(&spec)).unwrap().spec, spec);
    }

    #[test]
    fn a_lease_reads_back_as_it_was_and_its_rules_are_kept() {
        let request = v1::OpenLeaseRequest {
            reason: "release 7".to_owned(),
            exclusive_key: "web/prod".to_owned(),
            ..v1::OpenLeaseRequest::default()
        };
        let spec = Spec::try_from(request.clone()).unwrap();
        let What::Lease(terms) = &spec.what else { panic!("no lease") };
        assert_eq!((terms.ttl, spec.claims().len()), (LeaseTerms::DEFAULT_TTL, 2));
        assert_eq!(decode_stored(&encode_spec(&spec)).unwrap().spec, spec);
        for seconds in [0, 3601] {
            let ttl = Some(prost_types::Duration { seconds, nanos: 0 });
            let bad = v1::OpenLeaseRequest { ttl, ..request.clone() };
            assert_eq!(Spec::try_from(bad).unwrap_err().field, "ttl");
        }
        let under = |change: fn(&mut v1::ScriptSpec)| {
            let mut spec = v1::ScriptSpec { lease: "deploy-7".to_owned(), ..message() };
            change(&mut spec);
            Spec::try_from(spec)
        };
        let script = under(|_| {}).unwrap();
        assert_eq!(script.lines()[0].name.as_str(), "lease.deploy-7");
        assert_eq!(script.claims(), []);
        let observer = under(|spec| spec.isolation = Some(Isolation::Observer.into()));
        assert_eq!(observer.unwrap_err().field, "lease");
        let keyed = under(|spec| spec.exclusive_key = "k".to_owned());
        assert_eq!(keyed.unwrap_err().field, "exclusive_key");
        let rebooting = under(|spec| spec.reboot_exit_code = 7);
        assert_eq!(rebooting.unwrap_err().field, "reboot_exit_code");
    }

    #[test]
    fn a_negative_time_and_a_missing_script_are_refused() {
        let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        let bad = v1::ScriptSpec { run_time_limit: negative, ..message() };
        assert_eq!(Spec::try_from(bad).unwrap_err().field, "run_time_limit");
        let bad = v1::ScriptSpec { reboot_exit_code: 256, ..message() };
        assert_eq!(Spec::try_from(bad).unwrap_err().field, "reboot_exit_code");
        let bad = v1::ScriptSpec { what: None, ..message() };
        assert_eq!(Spec::try_from(bad).unwrap_err().field, "body or program");
    }
}
