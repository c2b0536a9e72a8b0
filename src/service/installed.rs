//! Which agents are installed on this machine, as the files of systemd and the configurations say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::unit::{OWN_UNITS, PACKAGED_UNITS, drop_in_path, unit_name, user_of};
use crate::config::directories::System;
use crate::config::{Instance, Sources};
use crate::text::chain;

/// An agent that is installed, or has a configuration only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Which; `None`: the default instance.
    pub instance: Option<Instance>,
    /// Whether it starts with the machine.
    pub enabled: bool,
    /// Who runs it; `None`: root.
    pub user: Option<String>,
    /// Where it listens.
    pub listens: Listens,
}

/// Where an agent listens, as its configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listens {
    /// There.
    At(SocketAddr),
    /// Nowhere: it serves this machine only.
    Nowhere,
    /// Its configuration can't be read; why.
    Unknown(String),
}

/// The machine's files, below another root for tests.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Machine {
    /// The files below a folder.
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where a file is.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether there is such a file or folder.
    pub fn has(&self, path: &Path) -> bool {
        self.path(path).exists()
    }

    /// The text of a file, if there is one that can be read.
    pub fn read(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok()
    }

    /// Whether the package has a unit or template.
    pub fn has_packaged(&self, unit_file: &str) -> bool {
        self.has(&Path::new(PACKAGED_UNITS).join(unit_file))
    }

    /// All agents, the default one first.
    pub fn installed(&self) -> Vec<Installed> {
        let mut found: BTreeMap<Option<Instance>, bool> = BTreeMap::new();
        let named = self.names("/etc/baton/instances");
        let named = named.iter().filter_map(|name| name.parse().ok()).map(Some);
        found.extend([None].into_iter().chain(named).map(|instance| (instance, false)));
        found.retain(|instance, _| self.is_configured(instance.as_ref()));
        for name in self.names(&format!("{OWN_UNITS}/multi-user.target.wants")) {
            if name == "baton.service" {
                found.insert(None, true);
            }
            let instance =
                name.strip_prefix("baton@").and_then(|name| name.strip_suffix(".service"));
            if let Some(Ok(instance)) = instance.map(str::parse) {
                found.insert(Some(instance), true);
            }
        }
        found.into_iter().map(|(instance, enabled)| self.describe(instance, enabled)).collect()
    }

    /// Whether its folder has more than what is somebody's own as a client.
    fn is_configured(&self, instance: Option<&Instance>) -> bool {
        let folder = System::of(instance).config;
        ["agent.toml", "agent.key"].iter().any(|name| self.has(&folder.join(name)))
    }

    fn describe(&self, instance: Option<Instance>, enabled: bool) -> Installed {
        let drop_in = self.read(&drop_in_path(instance.as_ref())).unwrap_or_default();
        let config = self.path(&System::of(instance.as_ref()).config);
        // Without the environment, which is that of whoever asks.
        let layers = Sources::file(config.join("agent.toml")).read_with([]);
        Installed {
            user: user_of(&drop_in).map(str::to_owned),
            listens: match layers {
                Ok(layers) => layers.config.listen.map_or(Listens::Nowhere, Listens::At),
                Err(error) => Listens::Unknown(chain(&error)),
            },
            instance,
            enabled,
        }
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries =
            std::fs::read_dir(self.path(Path::new(folder))).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

impl Installed {
    /// Its unit.
    pub fn unit(&self) -> String {
        unit_name(self.instance.as_ref())
    }

    /// Where it listens, if that is known and it does.
    pub fn address(&self) -> Option<SocketAddr> {
        match self.listens {
            Listens::At(address) => Some(address),
            Listens::Nowhere | Listens::Unknown(_) => None,
        }
    }
}
