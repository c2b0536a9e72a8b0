//! Launching: makes a script's workspace, writes the job, assigns a supervisor. One task does it, in
//! the order that the queue gives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{Instrument as _, error, info_span};

use super::supervisor::Supervisor;
use super::{Agent, AgentError};
use crate::crash;
use crate::journal;
use crate::script::{Isolation, Restart, ScriptId, variable};
use crate::spec::{Spec, What};
use crate::supervisor::job::{Assignment, Job, Lease};
use crate::workspace::{Workspace, is_lack};

/// How long to wait before a script that could not be launched is tried again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// The PATH of a script when the agent has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A supervisor, and the token of a job that goes on with the journal of earlier ones.
type Assigned = (Supervisor, Option<String>);

impl Agent {
    /// Launches what the queue allows, whenever it changes.
    pub(super) async fn run_launcher(self) {
        loop {
            if let Err(error) = self.inner.supervisors.keep_one_ready() {
                error!(%error, "no supervisor is kept ready");
            }
            let next = self.table().launch_next();
            match next {
                Some(spec) => {
                    let span = info_span!("script", script_id = %spec.script_id);
                    self.launch(spec).instrument(span).await;
                    self.inner.changed.send_replace(());
                }
                None => self.inner.launch.notified().await,
            }
        }
    }

    async fn launch(&self, spec: Arc<Spec>) {
        let id = &spec.script_id;
        match self.assign(&spec).await {
            Ok(Some((supervisor, continues))) => {
                let attendant = self.clone().attend(Arc::clone(&spec), supervisor, continues);
                self.spawn(attendant.instrument(tracing::Span::current()));
                // What was written down for it may have gone with the folder's earlier content.
                let stop = self.table().get(id).and_then(|living| living.stop.clone());
                if let Some(reason) = stop {
                    self.tell_supervisor_to_stop(id, reason).await;
                }
            }
            Ok(None) => self.put_back(id, "it is not to start", false).await,
            // A task of its own: the others don't wait for it.
            Err(error) => {
                let again = self.clone().try_again(id.clone(), error);
                self.spawn(again.instrument(tracing::Span::current()));
            }
        }
    }

    /// What the system lacks now (processes, files, room on the disk) it may have later: the script keeps
    /// its place until then. After some other errors it is not started.
    async fn try_again(self, id: ScriptId, error: AgentError) {
        let reason = crate::text::chain(&error);
        error!(reason, "can't be launched");
        tokio::time::sleep(PAUSE).await;
        self.put_back(&id, &reason, !is_lack(&error)).await;
    }

    async fn put_back(&self, id: &ScriptId, problem: &str, counts: bool) {
        let recorded = match self.requeue(id, problem, counts) {
            Ok(Some(kind)) => self.finish(id, kind.into(), None, Timestamp::now()).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            error!(%error, "the end is not recorded");
        }
    }

    /// `None` when the script is not to start after all. Also says the token of a job that goes on with the
    /// journal of earlier ones.
    async fn assign(&self, spec: &Arc<Spec>) -> Result<Option<Assigned>, AgentError> {
        let workspace = self.workspace(&spec.script_id);
        let no_supervisor = AgentError::Supervisor;
        let ready = self.inner.supervisors.ready().map_err(no_supervisor)?;
        let job = self.job(spec, &workspace, ready.pid());
        let token = job.token.clone();
        crash::point("before supervisor");
        let continues = job.restart.is_some().then(|| token.clone());
        let path = workspace.path().to_owned();
        let made = {
            let spec = Arc::clone(spec);
            super::blocking(move || {
                // One that ran before goes on where it stood.
                if job.restart.is_none() {
                    workspace.create(&spec)?;
                }
                workspace.reserve()?;
                workspace.write_job(&job)
            })
        };
        made.await??;
        let assignment = Assignment { workspace: path, token, tied: self.inner.settings.tied };
        let is_wanted = || self.table().is_to_start(&spec.script_id);
        let assigned = self.inner.supervisors.assign(&spec.script_id, ready, assignment, is_wanted);
        let assigned = assigned.await;
        crash::point("after supervisor");
        Ok(assigned.map_err(no_supervisor)?.map(|supervisor| (supervisor, continues)))
    }

    fn job(&self, spec: &Spec, workspace: &Workspace, supervisor: u32) -> Job {
        let (settings, config) = (&self.inner.settings, self.config());
        let mut command = match &spec.what {
            What::Program(program) => vec![program.clone()],
            What::Lease(_) => Vec::new(),
            What::Body { interpreter, .. } => interpreter_command(interpreter, workspace),
        };
        command.extend(spec.arguments.iter().cloned());
        let table = self.table();
        let living = table.get(&spec.script_id);
        let mut claimant = living.map(super::table::Living::claimant).unwrap_or_default();
        claimant.user = crate::mutex::Claimant::this_process(String::new()).user;
        let waited = living.map(|living| Timestamp::now() - living.queued_at);
        let waited = waited.and_then(|span| Duration::try_from(span).ok());
        let left = |limit: Duration| limit.saturating_sub(waited.unwrap_or_default());
        let restart = living.and_then(|living| living.restart.clone());
        // It limits the wait for the first run only.
        let queue_time_limit = spec.queue_time_limit.filter(|_| restart.is_none());
        let attempt = restart.as_ref().map_or(1, Restart::next_attempt);
        Job {
            script_id: spec.script_id.clone(),
            token: uuid::Uuid::now_v7().to_string(),
            supervisor,
            command,
            environment: self.environment(spec, workspace, attempt),
            directory: spec.working_directory.clone().unwrap_or_else(|| workspace.work()),
            mutexes: settings.mutexes.clone(),
            claims: spec.claims(),
            claimant,
            queue_time: queue_time_limit.map(|limit| (left(limit), limit)),
            run_time_limit: spec.run_time_limit,
            grace: spec.grace.unwrap_or(config.grace),
            output: journal::Limits {
                max_bytes: spec
                    .max_output_bytes
                    .map_or(config.max_output_bytes, |own| own.min(config.max_output_bytes)),
                min_free_bytes: config.min_free_bytes,
            },
            open_files: settings.open_files,
            sensitive: spec.sensitive.clone(),
            stragglers: spec.stragglers,
            boot_id: super::recover::boot_id(),
            service_messages: spec.service_messages,
            // A lease does not outlive the machine's run, nor do its scripts.
            may_resume: !settings.tied && spec.lease.is_none(),
            reboot_exit_code: spec.reboot_exit_code,
            restart,
            lease: match (&spec.what, &spec.lease) {
                (What::Lease(_), _) => Lease::Itself,
                (_, Some(lease)) => Lease::Under(self.workspace(lease).path().to_owned()),
                (_, None) => Lease::None,
            },
        }
    }

    /// The script's whole environment: a few variables of the agent's, the request's, baton's own.
    fn environment(
        &self,
        spec: &Spec,
        workspace: &Workspace,
        attempt: u32,
    ) -> BTreeMap<String, String> {
        let settings = &self.inner.settings;
        let mut environment: BTreeMap<String, String> = ["PATH", "HOME", "LANG", "TZ", "USER"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
            .collect();
        environment.extend(spec.environment.clone());
        let path = environment.remove("PATH").unwrap_or_else(|| DEFAULT_PATH.to_owned());
        let bin = settings.state.join("bin");
        environment.insert("PATH".to_owned(), format!("{}:{path}", bin.display()));
        let isolation = match spec.isolation {
            Isolation::Exclusive => "exclusive",
            Isolation::Shared { .. } => "shared",
            Isolation::Observer => "observer",
        };
        let own = [
            ("BATON_SCRIPT_ID", spec.script_id.to_string()),
            ("BATON_WORKSPACE", workspace.work().display().to_string()),
            ("BATON_MUTEX_DIR", settings.mutexes.display().to_string()),
            ("BATON_ISOLATION", isolation.to_owned()),
            ("BATON_OUTPUT", workspace.output().display().to_string()),
            ("BATON_PROGRESS", workspace.progress().display().to_string()),
            ("BATON_ARTIFACTS", workspace.artifacts().display().to_string()),
            ("BATON_PACKAGES", self.inner.packages.folder().display().to_string()),
            ("BATON_ATTEMPT", attempt.to_string()),
        ];
        environment.extend(own.map(|(name, value)| (name.to_owned(), value)));
        if let Some(lease) = &spec.lease {
            environment.insert("BATON_LEASE".to_owned(), lease.to_string());
        }
        for (key, value) in &spec.labels {
            environment.insert(format!("BATON_LABEL_{}", variable(key)), value.clone());
        }
        environment
    }
}

/// How an interpreter is told to read a file. PowerShell wants to be told more.
fn interpreter_command(interpreter: &str, workspace: &Workspace) -> Vec<String> {
    let body = workspace.body(interpreter);
    let is_powershell = body.extension().is_some();
    let options: &[&str] =
        if is_powershell { &["-NoLogo", "-NoProfile", "-NonInteractive", "-File"] } else { &[] };
    let words = [interpreter].into_iter().chain(options.iter().copied()).map(str::to_owned);
    words.chain([body.display().to_string()]).collect()
}
