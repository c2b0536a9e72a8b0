//! Where baton keeps what: for root the system's folders, for others the XDG ones. An instance has its
//! own, but for the mutexes, which are common to all of a user. Each can be set.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::{ConfigError, Instance};

/// The longest path of a Unix socket, in bytes (`sun_path` less the final NUL).
pub const MAX_SOCKET_PATH: usize = 107;

/// The folder of root's named mutexes.
pub const SYSTEM_MUTEXES: &str = "/run/lock/baton";

/// The folders of an agent of the system, that is root's or a service's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// See [`Directories::config`].
    pub config: PathBuf,
    /// See [`Directories::state`].
    pub state: PathBuf,
    /// See [`Directories::runtime`].
    pub runtime: PathBuf,
}

impl System {
    /// Those of an instance.
    pub fn of(instance: Option<&Instance>) -> Self {
        let [config, state, runtime] = match instance {
            None => ["/etc/baton", "/var/lib/baton", "/run/baton"].map(PathBuf::from),
            Some(name) => {
                ["/etc/baton/instances", "/var/lib/baton-instances", "/run/baton-instances"]
                    .map(|folder| PathBuf::from(folder).join(name.as_str()))
            }
        };
        Self { config, state, runtime }
    }
}

/// The four folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// Whose they are; `None`: the default instance's.
    pub instance: Option<Instance>,
    /// Identity, configuration, peers, targets.
    pub config: PathBuf,
    /// Database and workspaces.
    pub state: PathBuf,
    /// The agent's socket.
    pub runtime: PathBuf,
    /// The named mutexes. All agents and people of a machine that are to exclude each other use the
    /// same one.
    pub mutex: PathBuf,
}

/// Folders that flags or environment set.
#[derive(Debug, Clone, Default)]
pub struct DirectoryOverrides {
    /// Whose folders those are that are not set.
    pub instance: Option<Instance>,
    /// `BATON_CONFIG_DIR`
    pub config: Option<PathBuf>,
    /// `BATON_STATE_DIR`
    pub state: Option<PathBuf>,
    /// `BATON_RUNTIME_DIR`
    pub runtime: Option<PathBuf>,
    /// `BATON_MUTEX_DIR`
    pub mutex: Option<PathBuf>,
}

impl DirectoryOverrides {
    /// The variables of the folders that are set, by a flag or the environment.
    pub fn variables(&self) -> Vec<&'static str> {
        let folders = [
            (&self.config, "BATON_CONFIG_DIR"),
            (&self.state, "BATON_STATE_DIR"),
            (&self.runtime, "BATON_RUNTIME_DIR"),
            (&self.mutex, "BATON_MUTEX_DIR"),
        ];
        folders.into_iter().filter_map(|(set, name)| set.as_ref().map(|_| name)).collect()
    }
}

impl From<Directories> for DirectoryOverrides {
    fn from(all: Directories) -> Self {
        let Directories { instance, config, state, runtime, mutex } = all;
        let [config, state, runtime, mutex] = [config, state, runtime, mutex].map(Some);
        Self { instance, config, state, runtime, mutex }
    }
}

impl Directories {
    /// The folders of this user.
    ///
    /// # Errors
    /// When there is no home directory and not all folders are set.
    pub fn resolve(overrides: DirectoryOverrides) -> Result<Self, ConfigError> {
        let root = rustix::process::geteuid().is_root();
        let mut found = Self::find(overrides, root, environment)?;
        let here = std::env::current_dir().unwrap_or_default();
        for path in [&mut found.config, &mut found.state, &mut found.runtime, &mut found.mutex] {
            *path = here.join(&*path);
        }
        Ok(found)
    }

    /// The folder of the named mutexes alone: when it is set, no home is needed.
    ///
    /// # Errors
    /// As [`Directories::resolve`].
    pub fn mutex_folder(overrides: DirectoryOverrides) -> Result<PathBuf, ConfigError> {
        match overrides.mutex {
            Some(folder) => Ok(std::env::current_dir().unwrap_or_default().join(folder)),
            None => match Self::resolve(overrides) {
                // The one of them that is needed.
                Err(ConfigError::NoHome(_)) => Err(ConfigError::NoHome("BATON_MUTEX_DIR")),
                resolved => Ok(resolved?.mutex),
            },
        }
    }

    fn find(
        set: DirectoryOverrides,
        root: bool,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        // An empty or relative XDG variable counts as unset, as its specification says.
        let xdg = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = |below: &str, instead| {
            let home = variable("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
            home.map(|home| home.join(below)).ok_or(ConfigError::NoHome(instead))
        };
        let own = |base: PathBuf| match &set.instance {
            Some(name) => base.join("instances").join(name.as_str()),
            None => base,
        };
        let folder =
            |set: Option<PathBuf>, system: PathBuf, name: &str, below: &str, instead| match (
                set, root,
            ) {
                (Some(path), _) => Ok(path),
                (None, true) => Ok(system),
                (None, false) => {
                    let base = xdg(name).map_or_else(|| home(below, instead), Ok)?;
                    Ok(own(base.join("baton")))
                }
            };
        let System { config, state, runtime } = System::of(set.instance.as_ref());
        let config = folder(set.config, config, "XDG_CONFIG_HOME", ".config", "BATON_CONFIG_DIR")?;
        let state_set = set.state.is_some();
        let state = folder(set.state, state, "XDG_STATE_HOME", ".local/state", "BATON_STATE_DIR")?;
        let run = || match xdg("XDG_RUNTIME_DIR") {
            Some(base) => Ok(base.join("baton")),
            None if state_set => Ok(state.join("run")),
            None => {
                let base = xdg("XDG_STATE_HOME");
                let base = base.map_or_else(|| home(".local/state", "BATON_STATE_DIR"), Ok)?;
                Ok(base.join("baton/run"))
            }
        };
        // Common to all instances: each would exclude only itself.
        let mutex = match (set.mutex, &set.runtime) {
            (Some(path), _) => path,
            (None, _) if root => PathBuf::from(SYSTEM_MUTEXES),
            (None, Some(runtime)) => runtime.join("mutex"),
            (None, None) => run()?.join("mutex"),
        };
        let runtime = match set.runtime {
            Some(path) => path,
            None if root => runtime,
            None => own(run()?),
        };
        Ok(Self { instance: set.instance, config, state, runtime, mutex })
    }

    /// The socket of this machine's agent.
    ///
    /// # Errors
    /// When its path would be longer than the system allows.
    pub fn socket(&self) -> Result<PathBuf, ConfigError> {
        let path = self.runtime.join("agent.sock");
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(ConfigError::SocketPath(path));
        }
        Ok(path)
    }

    /// Where the agent says on which address it listens.
    pub fn address_file(&self) -> PathBuf {
        self.runtime.join("agent.address")
    }

    /// The state folders of embedded agents.
    pub fn embedded(&self) -> PathBuf {
        self.state.join("embedded")
    }
}

/// A variable of the environment. The folder of a logged-in user is known without one too: a cron job
/// or a bare `su` must meet the same mutexes as a login shell.
fn environment(name: &str) -> Option<OsString> {
    let set = std::env::var_os(name).filter(|value| !value.is_empty());
    if name != "XDG_RUNTIME_DIR" || set.is_some() {
        return set;
    }
    let uid = rustix::process::geteuid().as_raw();
    let folder = PathBuf::from(format!("/run/user/{uid}"));
    let is_own = folder.metadata().is_ok_and(|found| found.is_dir() && found.uid() == uid);
    is_own.then(|| folder.into_os_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn find(
        set: DirectoryOverrides,
        root: bool,
        environment: &[(&str, &str)],
    ) -> Result<Directories, ConfigError> {
        Directories::find(set, root, |name| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    fn paths(d: &Directories) -> [String; 4] {
        [&d.config, &d.state, &d.runtime, &d.mutex].map(|path| path.display().to_string())
    }

    #[test]
    fn root_uses_the_system_s_folders_whatever_the_environment_says() {
        let found = find(DirectoryOverrides::default(), true, &[("XDG_RUNTIME_DIR", "/x")]);
        let expected = ["/etc/baton", "/var/lib/baton", "/run/baton", "/run/lock/baton"];
        assert_eq!(paths(&found.unwrap()), expected);
    }

    #[test]
    fn others_use_the_xdg_folders_or_their_home() {
        let xdg = [("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/7"), ("XDG_STATE_HOME", "s")];
        let found = find(DirectoryOverrides::default(), false, &xdg).unwrap();
        let expected = [
            "/h/.config/baton",
            "/h/.local/state/baton",
            "/run/user/7/baton",
            "/run/user/7/baton/mutex",
        ];
        assert_eq!(paths(&found), expected);
        let found = find(DirectoryOverrides::default(), false, &[("HOME", "/h")]).unwrap();
        assert_eq!(found.mutex, Path::new("/h/.local/state/baton/run/mutex"));
    }

    #[test]
    fn an_instance_has_folders_of_its_own_and_the_mutexes_are_common() {
        let instance = "blue".parse().ok();
        let set = DirectoryOverrides { instance, ..DirectoryOverrides::default() };
        let expected = [
            "/etc/baton/instances/blue",
            "/var/lib/baton-instances/blue",
            "/run/baton-instances/blue",
            "/run/lock/baton",
        ];
        assert_eq!(paths(&find(set.clone(), true, &[]).unwrap()), expected);
        let xdg = [("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/7")];
        let expected = [
            "/h/.config/baton/instances/blue",
            "/h/.local/state/baton/instances/blue",
            "/run/user/7/baton/instances/blue",
            "/run/user/7/baton/mutex",
        ];
        assert_eq!(paths(&find(set.clone(), false, &xdg).unwrap()), expected);
        let home = [("HOME", "/h")];
        let (named, default) =
            (find(set, false, &home), find(DirectoryOverrides::default(), false, &home));
        assert_eq!(named.as_ref().unwrap().mutex, default.unwrap().mutex);
        assert_eq!(named.unwrap().runtime, Path::new("/h/.local/state/baton/run/instances/blue"));
    }

    #[test]
    fn each_folder_can_be_set_alone() {
        let set = DirectoryOverrides { mutex: Some("/m".into()), ..DirectoryOverrides::default() };
        assert_eq!(set.variables(), ["BATON_MUTEX_DIR"]);
        assert_eq!(find(set, true, &[]).unwrap().mutex, Path::new("/m"));
    }

    #[test]
    fn no_home_is_an_error_that_says_what_to_set() {
        let error = find(DirectoryOverrides::default(), false, &[]).unwrap_err();
        assert!(error.to_string().contains("BATON_CONFIG_DIR"), "{error}");
    }

    #[test]
    fn a_socket_path_has_a_limit() {
        let long = PathBuf::from(format!("/{}", "x".repeat(100)));
        let set = DirectoryOverrides { runtime: Some(long), ..DirectoryOverrides::default() };
        assert!(matches!(find(set, true, &[]).unwrap().socket(), Err(ConfigError::SocketPath(_))));
    }
}
