//! The edge of the pure part: reads the files that a project and its machines are in, the scripts and
//! values that stand elsewhere, and the environment of the orchestrator.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::planning::Request;
use super::problem::Problems;
use super::project::Project;
use super::step::Source;
use super::targets::Targets;
use super::value::Value;
use super::variables::ValueSource;
use crate::spec::{MAX_ARGUMENT_BYTES, MAX_BODY_BYTES};

/// The longest project file and the longest `targets.toml`, in bytes.
const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;

/// Why a project or its machines could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file can't be read.
    #[error("file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What is in it is wrong.
    #[error(transparent)]
    Problems(#[from] Problems),
}

/// Reads a project, with its scripts. Values that stand elsewhere are left for [`values`].
///
/// # Errors
/// When a file can't be read, or everything that is wrong in it.
pub fn project(path: &Path) -> Result<Project, LoadError> {
    let mut project = Project::parse(&path.to_string_lossy(), &text(path)?)?;
    let (folder, places) = (project.folder().to_owned(), project.places.clone());
    let mut problems = Vec::new();
    for (key, source) in project.script_files() {
        let Source::File(path) = source else { continue };
        match read(&folder.join(&*path), MAX_BODY_BYTES) {
            Ok(body) if body.trim().is_empty() => {
                let message = format!("file {} is empty: there is nothing to run", path.display());
                problems.push(places.problem(key, message));
            }
            Ok(body) => *source = Source::Text(body),
            Err(error) => {
                problems.push(places.problem(key, format!("file {}: {error}", path.display())));
            }
        }
    }
    Problems::none_of(problems)?;
    Ok(project)
}

/// Reads the values that stand elsewhere and that may hold somewhere in the deployment. So nobody needs the
/// secrets of another environment.
///
/// # Errors
/// Each file that can't be read and each environment variable that is not set.
pub fn values(
    project: &mut Project,
    request: &Request,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<(), Problems> {
    let (folder, places) = (project.folder().to_owned(), project.places.clone());
    let mut problems = Vec::new();
    for definition in project.variables.iter_mut() {
        if !definition.scope.concerns(&request.environment, request.tenant.as_deref()) {
            continue;
        }
        let (field, read) = match &definition.source {
            ValueSource::Text(_) | ValueSource::Read(_) => continue,
            ValueSource::File(path) => {
                let text = read(&folder.join(path), MAX_ARGUMENT_BYTES);
                let without_newline = |text: String| {
                    let cut = text.strip_suffix('\n').map(str::len);
                    text[..cut.unwrap_or(text.len())].to_owned()
                };
                let refused = |error| format!("file {}: {error}", path.display());
                ("value_file", text.map(without_newline).map_err(refused))
            }
            ValueSource::Environment(name) => ("value_env", from_environment(name, &environment)),
        };
        match read {
            Ok(text) if definition.is_sensitive => {
                definition.source = ValueSource::Read(Value::sensitive(text));
            }
            Ok(text) => definition.source = ValueSource::Read(Value::plain(text)),
            Err(message) => {
                problems.push(places.problem(format!("{}.{field}", definition.key), message));
            }
        }
    }
    Problems::none_of(problems)
}

fn from_environment(
    name: &str,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<String, String> {
    let value = environment(name).ok_or(format!("environment variable {name} is not set"))?;
    let text = value.into_string().map_err(|_| format!("environment variable {name} is not UTF-8"));
    let text = text?;
    if text.len() > MAX_ARGUMENT_BYTES {
        let limit = format!("is longer than {MAX_ARGUMENT_BYTES} bytes");
        return Err(format!("environment variable {name} {limit}"));
    }
    Ok(text)
}

/// Reads `targets.toml`.
///
/// # Errors
/// When it can't be read, or everything that is wrong in it.
pub fn targets(path: &Path) -> Result<Targets, LoadError> {
    Ok(Targets::parse(&path.to_string_lossy(), &text(path)?)?)
}

/// The file of the machines that this client knows.
pub fn known_targets_file(config: &Path) -> PathBuf {
    config.join("targets.toml")
}

/// Reads the machines that this client knows; without a file there are none.
///
/// # Errors
/// When the file can't be read, or everything that is wrong in it.
pub fn known_targets(config: &Path) -> Result<Targets, LoadError> {
    let path = known_targets_file(config);
    Ok(Targets::parse(&path.to_string_lossy(), &text_if_there(&path)?)?)
}

/// A file's text; empty when it is not there.
///
/// # Errors
/// When it is there and can't be read.
pub fn text_if_there(path: &Path) -> Result<String, LoadError> {
    match text(path) {
        Err(LoadError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(String::new())
        }
        other => other,
    }
}

fn text(path: &Path) -> Result<String, LoadError> {
    let file = |source| LoadError::File { path: path.to_owned(), source };
    read(path, MAX_FILE_BYTES).map_err(file)
}

/// Reads a text, at most so many bytes of it.
fn read(path: &Path, limit: usize) -> std::io::Result<String> {
    let most = u64::try_from(limit).unwrap_or(u64::MAX);
    let mut text = String::new();
    std::fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    if text.len() > limit {
        return Err(std::io::Error::other(format!("is longer than {limit} bytes")));
    }
    Ok(text)
}
