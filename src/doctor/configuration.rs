//! The configuration: whether it can be read, what the environment sets, who may change it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::finding::Finding;
use super::scene::{Scene, environment_of};
use crate::config::client::ClientConfig;
use crate::config::{Config, ConfigError};
use crate::deploy::load;
use crate::text::chain;

/// What a name of the environment that is baton's begins with.
const PREFIX: &str = "BATON_";
/// Files of the configuration folder whose content decides what the agent does, and for whom.
const FILES: [&str; 6] =
    ["", "agent.toml", "client.toml", "peers.toml", "targets.toml", "agent.key"];

/// `agent.toml` can be read, and knows every key.
pub(super) fn agent(scene: &Scene) -> Finding {
    let path = scene.folders.config.join("agent.toml");
    match scene.config().as_deref() {
        Some(Ok(layers)) => judge_config(&layers.config, &path, path.exists()),
        Some(Err(error)) => refused(error),
        None => Finding::error(format!("{} does not answer", path.display()))
            .hint("it is no plain file, or its file system hangs"),
    }
}

fn judge_config(config: &Config, path: &Path, is_there: bool) -> Finding {
    let listen = config.listen.map_or("none".to_owned(), |address| address.to_string());
    if is_there {
        return Finding::ok(format!("{} (listen = {listen})", path.display()));
    }
    Finding::ok(format!("no {}: the defaults hold (listen = {listen})", path.display()))
}

fn refused(error: &ConfigError) -> Finding {
    if let ConfigError::File { source, path } = error
        && source.kind() == ErrorKind::PermissionDenied
    {
        return Finding::needs_root(&path.display().to_string());
    }
    Finding::error(chain(error)).hint(
        "`baton config check` looks at a changed file, `baton config example` explains every key",
    )
}

/// `client.toml` and `targets.toml` can be read.
pub(super) fn client(scene: &Scene) -> Finding {
    let folder = &scene.folders.config;
    let config = match ClientConfig::load(folder) {
        Ok(config) => Finding::ok(match config.coordination.etcd.len() {
            0 => "client.toml names no etcd".to_owned(),
            members => format!("client.toml names {members} members of etcd"),
        }),
        Err(error) => refused(&error),
    };
    let targets = match load::known_targets(folder) {
        Ok(targets) => Finding::ok(format!("{} targets", targets.iter().count())),
        Err(load::LoadError::File { source, path })
            if source.kind() == ErrorKind::PermissionDenied =>
        {
            Finding::needs_root(&path.display().to_string())
        }
        Err(error) => Finding::error(chain(&error)).hint("`baton target list` says all of it"),
    };
    Finding::all(vec![config, targets])
}

/// What the environment sets, here and for the agent. Names only: a value may be a secret.
pub(super) fn environment(scene: &Scene) -> Finding {
    let names = |variables: &mut dyn Iterator<Item = (OsString, OsString)>| {
        let names = variables.map(|(name, _)| name.to_string_lossy().into_owned());
        names.filter(|name| name.starts_with(PREFIX)).collect::<BTreeSet<String>>()
    };
    let own = names(&mut std::env::vars_os());
    let agents = scene.process().and_then(|process| environment_of(&process));
    let agents = agents.map(|variables| names(&mut variables.into_iter()));
    let mistyped = match scene.config().as_deref() {
        Some(Ok(layers)) => layers.mistyped.clone(),
        Some(Err(_)) | None => Vec::new(),
    };
    judge_environment(&own, agents.as_ref(), &mistyped)
}

/// `mistyped`: variables that look like those of keys, each with what helps.
fn judge_environment(
    own: &BTreeSet<String>,
    agents: Option<&BTreeSet<String>>,
    mistyped: &[(String, String)],
) -> Finding {
    let list = |names: &BTreeSet<String>| match names.len() {
        0 => "nothing".to_owned(),
        _ => names.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
    };
    let here = format!("set here: {}", list(own));
    let mut findings = vec![match agents {
        Some(agents) if agents != own => {
            Finding::ok(format!("{here}; for the agent: {}", list(agents)))
        }
        Some(_) => Finding::ok(format!("{here}, the same for the agent")),
        None => Finding::ok(here),
    }];
    for (name, hint) in mistyped {
        findings.push(Finding::warning(format!("{name} is no key's variable")).hint(hint));
    }
    Finding::all(findings)
}

/// Nobody else may change what the agent does and whom it trusts.
pub(super) fn permissions(scene: &Scene) -> Finding {
    let users = scene.users();
    let folder = &scene.folders.config;
    let mut findings = Vec::new();
    for name in FILES {
        let path = if name.is_empty() { folder.clone() } else { folder.join(name) };
        match path.metadata() {
            Ok(found) => findings.push(judge_owner(&path, found.uid(), found.mode(), &users)),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                findings.push(Finding::needs_root(&path.display().to_string()));
            }
            Err(e) => findings.push(
                Finding::error(format!("{}: {e}", path.display()))
                    .hint("something else stands in its place, or its disk is broken"),
            ),
        }
    }
    if findings.is_empty() {
        return Finding::ok(format!("no folder {} yet", folder.display()));
    }
    if findings.iter().all(|finding| finding.hints.is_empty()) {
        return Finding::ok(format!("only its owner may change {}", folder.display()));
    }
    Finding::all(findings)
}

fn judge_owner(path: &Path, owner: u32, mode: u32, users: &[u32]) -> Finding {
    let shown = path.display();
    if !users.contains(&owner) {
        return Finding::error(format!("{shown} belongs to user {owner}")).hint(format!(
            "chown it to the agent's user: who may write there rules the agent ({shown})"
        ));
    }
    if mode & 0o022 != 0 {
        return Finding::error(format!("others may write {shown} (mode {:o})", mode & 0o7777))
            .hint(format!("chmod go-w {shown}"));
    }
    Finding::ok(format!("{shown}"))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn only_its_owner_may_change_the_configuration() {
        let path = Path::new("/etc/baton/peers.toml");
        for (owner, mode, verdict) in [
            (0, 0o644, Verdict::Ok),
            (7, 0o600, Verdict::Ok),
            (0, 0o664, Verdict::Error),
            (7, 0o646, Verdict::Error),
            (8, 0o600, Verdict::Error),
        ] {
            assert_eq!(
                judge_owner(path, owner, mode, &[0, 7]).verdict,
                verdict,
                "{owner} {mode:o}"
            );
        }
    }

    #[test]
    fn what_the_environment_sets_is_told_by_name() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let found = judge_environment(&set(&["BATON_A"]), Some(&set(&[])), &[]).found;
        assert_eq!(found, "set here: BATON_A; for the agent: nothing");
        assert_eq!(judge_environment(&set(&[]), None, &[]).found, "set here: nothing");
        let mistyped = [("BATON_A".to_owned(), "did you mean BATON_B?".to_owned())];
        let finding = judge_environment(&set(&["BATON_A"]), None, &mistyped);
        assert_eq!(finding.verdict, Verdict::Warning);
    }

    #[test]
    fn a_file_that_may_not_be_read_is_unknown_and_another_one_is_an_error() {
        let file = |kind: ErrorKind| ConfigError::File { path: "/x".into(), source: kind.into() };
        assert_eq!(refused(&file(ErrorKind::PermissionDenied)).verdict, Verdict::Unknown);
        assert_eq!(refused(&file(ErrorKind::IsADirectory)).verdict, Verdict::Error);
        let key =
            ConfigError::Text { path: "/x".into(), line: 2, message: "unknown key".to_owned() };
        assert_eq!(refused(&key).verdict, Verdict::Error);
    }
}
