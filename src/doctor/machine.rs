//! What scripts find on the machine.

use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::scene::Scene;

/// What scripts are written for. None of them must be there.
const SHELLS: [&str; 4] = ["sh", "bash", "python3", "pwsh"];

/// Which interpreters are on the PATH of scripts.
pub(super) fn shells(scene: &Scene) -> Finding {
    // Scripts have the agent's.
    let agents = scene.process().and_then(|process| process.variable("PATH").ok().flatten());
    let path = agents.map_or_else(|| std::env::var_os("PATH").unwrap_or_default(), Into::into);
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let places = SHELLS.map(|name| (name, place(&folders, name)));
    judge_shells(&places)
}

fn place(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    folders.iter().filter(|folder| *folder != Path::new("")).map(|f| f.join(name)).find(is_program)
}

fn judge_shells(places: &[(&str, Option<PathBuf>)]) -> Finding {
    let told = places.iter().map(|(name, place)| match place {
        Some(place) => place.display().to_string(),
        None => format!("no {name}"),
    });
    Finding::ok(told.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_found_or_not_and_both_is_ok() {
        let places = [("sh", Some(PathBuf::from("/bin/sh"))), ("pwsh", None)];
        assert_eq!(judge_shells(&places), Finding::ok("/bin/sh, no pwsh"));
        let path: Vec<PathBuf> =
            std::env::split_paths(&std::env::var_os("PATH").unwrap()).collect();
        assert!(place(&path, "sh").is_some());
        assert_eq!(place(&path, "no-such-program"), None);
    }
}
