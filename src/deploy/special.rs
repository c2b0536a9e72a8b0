//! Pure: the variables that say how a deployment runs. They have scopes like any other.
//!
//! What holds for several machines at once (a limit, a tag) is asked for at each of them. Where the values
//! differ, the smallest limit counts, so that a limit holds wherever it is in scope.

use std::num::NonZeroU32;

use super::plan::TargetKind;
use super::problem::{Problem, did_you_mean};
use super::project::Project;
use super::template;
use super::variables::{Definition, ValueSource, Values, built_in};
use crate::mutex::ExclusiveKey;

/// `True`: scripts bypass the machine mutex.
pub const BYPASS: &str = "OctopusBypassDeploymentMutex";
/// How many package transfers run at once.
pub const ACQUIRE_PARALLELISM: &str = "Octopus.Acquire.MaxParallelism";
/// On how many machines a step runs at once, and how many steps that run side by side run at once.
pub const ACTION_PARALLELISM: &str = "Octopus.Action.MaxParallelism";
/// Deployments with the same tag never run together.
pub const CONCURRENCY_TAG: &str = "Octopus.Task.ConcurrencyTag";
/// What a limit is when nothing says otherwise.
pub const DEFAULT_PARALLELISM: NonZeroU32 = match NonZeroU32::new(10) {
    Some(ten) => ten,
    None => NonZeroU32::MIN,
};

/// The variable with the limit of one step.
pub fn step_parallelism(step: &str) -> String {
    format!("Octopus.Action[{step}].MaxParallelism")
}

/// `True` or `False`, in any case.
///
/// # Errors
/// When it is something else.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be True or False".to_owned()),
    }
}

/// A number from 1 to 4294967295.
///
/// # Errors
/// When it is something else.
pub fn positive(text: &str) -> Result<NonZeroU32, String> {
    // A sign is no part of it: parse would take a plus.
    let digits = text.trim();
    let number = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok());
    number.flatten().ok_or_else(|| "must be a positive number".to_owned())
}

/// What a special variable's value must be.
type Rule = fn(&str) -> Result<(), String>;

/// The rule of a special variable; `None`: it is none.
fn rule(name: &str) -> Option<Rule> {
    match name {
        BYPASS => Some(|text| boolean(text).map(drop)),
        ACQUIRE_PARALLELISM | ACTION_PARALLELISM => Some(|text| positive(text).map(drop)),
        CONCURRENCY_TAG => Some(|text| tag(text).map(drop)),
        _ if step_of(name).is_some() => Some(|text| positive(text).map(drop)),
        _ => None,
    }
}

/// The step of `Octopus.Action[STEP].MaxParallelism`.
fn step_of(name: &str) -> Option<&str> {
    name.strip_prefix("Octopus.Action[")?.strip_suffix("].MaxParallelism")
}

fn tag(text: &str) -> Result<String, String> {
    let key = text.parse::<ExclusiveKey>();
    key.map(|key| key.as_str().to_owned()).map_err(|error| error.to_string())
}

/// What is wrong with a value that is known before anything else is: its name or its text.
pub(super) fn check(definition: &Definition, project: &Project) -> Option<Problem> {
    let name = definition.name.as_str();
    let at = |field: &str, message: String| {
        project.places.problem(format!("{}.{field}", definition.key), message)
    };
    let all = [BYPASS, ACQUIRE_PARALLELISM, ACTION_PARALLELISM, CONCURRENCY_TAG];
    let mut known = all.into_iter().chain(built_in::ALL);
    if let Some(exact) = known.find(|known| known.eq_ignore_ascii_case(name) && *known != name) {
        let hint = format!("did you mean {exact:?}?");
        return Some(at("name", format!("{name:?} would have no effect")).hint(hint));
    }
    if let Some(step) = step_of(name)
        && !project.steps.iter().any(|own| own.name == step)
    {
        let hint = did_you_mean(step, project.steps.iter().map(|own| own.name.as_str()));
        return Some(at("name", format!("there is no step {step:?}")).hint(hint));
    }
    let ValueSource::Text(text) = &definition.source else { return None };
    let message = rule(name)?(&template::literal(text)?).err()?;
    Some(at("value", format!("is {text:?}, but {message}")))
}

/// Reads a special variable; `None`: it has no value here.
fn read<T>(
    values: &mut Values<'_>,
    name: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Option<T>, Problem> {
    let Some(value) = values.get(name)? else { return Ok(None) };
    let refused = |message| {
        let found = values.project().variables.find(name, values.context());
        let key = found.ok().flatten().map_or("variables", |definition| definition.key.as_str());
        let message =
            format!("{name} is {:?} for {}, but {message}", value.shown(), values.place());
        values.project().places.problem(format!("{key}.value"), message)
    };
    parse(value.expose()).map(Some).map_err(refused)
}

/// Whether scripts of a step bypass the mutex of a target. `None`: nothing says so, and it is no worker.
///
/// # Errors
/// When the value is neither true nor false.
pub fn bypass(values: &mut Values<'_>) -> Result<Option<bool>, Problem> {
    let set = read(values, BYPASS, boolean)?;
    let is_worker = values.context().target.is_some_and(|target| target.kind == TargetKind::Worker);
    Ok(set.or(is_worker.then_some(true)))
}

/// How many package transfers run at once, of what one target says.
///
/// # Errors
/// When the value is no positive number.
pub fn acquire_parallelism(values: &mut Values<'_>) -> Result<NonZeroU32, Problem> {
    Ok(read(values, ACQUIRE_PARALLELISM, positive)?.unwrap_or(DEFAULT_PARALLELISM))
}

/// On how many machines a step runs at once, of what one target says; `own` is what the step itself says.
///
/// # Errors
/// When a value is no positive number.
pub fn action_parallelism(
    values: &mut Values<'_>,
    own: Option<NonZeroU32>,
) -> Result<NonZeroU32, Problem> {
    let name = values.context().step.map(step_parallelism);
    let of_step = match name {
        Some(name) => read(values, &name, positive)?,
        None => None,
    };
    let general = read(values, ACTION_PARALLELISM, positive)?;
    Ok(of_step.or(own).or(general).unwrap_or(DEFAULT_PARALLELISM))
}

/// How many steps that run side by side run at once, of what one of them says on one target.
///
/// # Errors
/// When the value is no positive number.
pub fn stage_parallelism(values: &mut Values<'_>) -> Result<NonZeroU32, Problem> {
    Ok(read(values, ACTION_PARALLELISM, positive)?.unwrap_or(DEFAULT_PARALLELISM))
}

/// The tag of a deployment: by default its tenant, if any, its project and its environment.
///
/// # Errors
/// When it is empty, too long, or a secret.
pub fn concurrency_tag(values: &mut Values<'_>) -> Result<String, Problem> {
    if let Some(tag) = read(values, CONCURRENCY_TAG, tag)? {
        return match values.get(CONCURRENCY_TAG)? {
            Some(value) if value.is_sensitive() => {
                let message = format!("{CONCURRENCY_TAG} is a secret, but others must see it");
                Err(values.project().places.problem("variables", message))
            }
            _ => Ok(tag),
        };
    }
    let context = values.context();
    let parts = context.tenant.into_iter().chain([values.project().name.as_str()]);
    let parts: Vec<&str> = parts.chain([context.environment]).collect();
    tag(&parts.join("/")).map_err(|error| {
        let message = format!("the tag {:?} {error}", parts.join("/"));
        let hint = format!("set {CONCURRENCY_TAG} to something shorter");
        values.project().places.problem("project", message).hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boolean_is_true_or_false_in_any_case() {
        for (text, expected) in [
            ("True", Some(true)),
            ("true", Some(true)),
            ("TRUE", Some(true)),
            (" tRuE ", Some(true)),
            ("False", Some(false)),
            ("false", Some(false)),
            ("FALSE", Some(false)),
            ("", None),
            ("1", None),
            ("0", None),
            ("yes", None),
            ("Truee", None),
        ] {
            assert_eq!(boolean(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_limit_is_a_positive_number() {
        for (text, expected) in [("1", 1), (" 25 ", 25), ("007", 7), ("4294967295", u32::MAX)] {
            assert_eq!(positive(text).unwrap().get(), expected, "{text:?}");
        }
        for bad in ["0", "-1", "+1", "1.5", "", " ", "ten", "4294967296", "1 0"] {
            positive(bad).unwrap_err();
        }
    }

    #[test]
    fn a_value_without_effect_is_refused_before_anything_else() {
        for (name, value, expected) in [
            (BYPASS, "maybe", "is \"maybe\", but must be True or False"),
            (ACQUIRE_PARALLELISM, "0", "is \"0\", but must be a positive number"),
            (ACTION_PARALLELISM, "-3", "is \"-3\", but must be a positive number"),
            ("Octopus.Action[Deploy].MaxParallelism", "x", "is \"x\", but must be a positive"),
            (CONCURRENCY_TAG, "", "is \"\", but is empty"),
            ("octopusBypassDeploymentMutex", "True", "\"octopusBypassDeploymentMutex\" would have"),
            ("Octopus.Action[Deplo].MaxParallelism", "1", "there is no step \"Deplo\""),
        ] {
            let text = format!(
                "project = 'web'\n[[steps]]\nname = 'Deploy'\nrun = 'true'\n\
                 [[variables]]\nname = '{name}'\nvalue = '{value}'\nscope.environment = 'Nowhere'"
            );
            let problems = Project::parse("deploy.toml", &text).unwrap_err();
            let told: Vec<_> = problems.iter().map(|p| p.message.as_str()).collect();
            assert!(told.len() == 1 && told[0].starts_with(expected), "{name}: {told:?}");
        }
    }
}
