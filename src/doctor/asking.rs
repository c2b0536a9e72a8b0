//! Asking with a limit: other programs, agents, and what is read once for several checks.

use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a program or an agent may take to answer: well within the limit of all checks.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// There is no such program.
    #[error("there is no `{0}` here")]
    Missing(&'static str),
    /// It took too long, and was ended.
    #[error("`{0}` did not answer within {ANSWER_LIMIT:?}")]
    Late(&'static str),
    /// It said that it can't.
    #[error("`{program}`: {problem}")]
    Failed {
        /// Which program.
        program: &'static str,
        /// What it said.
        problem: String,
    },
    /// Nothing can be started or waited for.
    #[error("nothing can be asked")]
    System(#[from] std::io::Error),
}

/// What a program writes to its standard output. It is ended when it takes too long.
pub(super) fn ask(program: &'static str, words: &[&str]) -> Result<String, AskError> {
    within(ANSWER_LIMIT, async {
        let mut command = tokio::process::Command::new(program);
        command.args(words).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| {
            let is_missing = error.kind() == std::io::ErrorKind::NotFound;
            if is_missing { AskError::Missing(program) } else { AskError::System(error) }
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let problem = crate::text::shorten(said.trim(), 200);
            return Err(AskError::Failed { program, problem });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })?
    .unwrap_or(Err(AskError::Late(program)))
}

/// Waits for an answer on a runtime of its own; `None` when it takes too long.
pub(super) fn within<T>(
    limit: Duration,
    answer: impl Future<Output = T>,
) -> Result<Option<T>, std::io::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { tokio::time::timeout(limit, answer).await.ok() });
    // A name that is being looked up, say, is not waited for.
    runtime.shutdown_background();
    Ok(answer)
}

/// What is read once, on a thread of its own, for all who want to know.
pub(super) struct Soon<T> {
    shared: Arc<(Mutex<Option<Arc<T>>>, Condvar)>,
    until: Instant,
}

impl<T: Send + Sync + 'static> Soon<T> {
    /// Begins to read.
    pub(super) fn begin(look: impl FnOnce() -> T + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(None), Condvar::new()));
        let to_tell = Arc::clone(&shared);
        let read = move || {
            let seen = Arc::new(look());
            *to_tell.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
            to_tell.1.notify_all();
        };
        // Without a thread nobody learns it, which all who ask say.
        drop(std::thread::Builder::new().name("doctor".to_owned()).spawn(read));
        Self { shared, until: Instant::now() + ANSWER_LIMIT + Duration::from_secs(1) }
    }

    /// What was read; `None` when that takes too long.
    pub(super) fn get(&self) -> Option<Arc<T>> {
        let (seen, rings) = &*self.shared;
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.until.saturating_duration_since(Instant::now());
        let waited = rings.wait_timeout_while(seen, left, |seen| seen.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended_and_one_that_is_not_there_is_named() {
        let begin = Instant::now();
        let error = ask("sleep", &["1000"]).unwrap_err();
        assert!(matches!(error, AskError::Late("sleep")), "{error}");
        assert!(begin.elapsed() < ANSWER_LIMIT * 3);
        assert!(matches!(ask("no-such-program", &[]), Err(AskError::Missing(_))));
        assert_eq!(ask("echo", &["a"]).unwrap(), "a\n");
        assert!(ask("sh", &["-c", "echo no >&2; exit 1"]).unwrap_err().to_string().contains("no"));
    }
}
