//! A file of an agent as people name it: `ROOT:path`, or `ROOT/path`.

use std::str::FromStr;

use super::failure::Failure;
use crate::transfer::Place;

/// A file or folder of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote {
    root: String,
    /// Without a slash at the end; empty: the root itself.
    path: String,
    /// What is pushed goes into it, under its own name.
    is_folder: bool,
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (root, path) = text.split_once([':', '/']).unwrap_or((text, ""));
        if root.is_empty() {
            return Err("ROOT:PATH is expected, for example files:app.tar.gz".to_owned());
        }
        let trimmed = path.strip_suffix('/').unwrap_or(path);
        let is_folder = path.is_empty() || path.ends_with('/');
        Ok(Self { root: root.to_owned(), path: trimmed.to_owned(), is_folder })
    }
}

impl Remote {
    /// Whether what is pushed goes into it, under its own name.
    pub(super) fn is_folder(&self) -> bool {
        self.is_folder
    }

    /// What is below it.
    pub(super) fn join(&self, name: &str) -> Self {
        let path =
            if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) };
        Self { root: self.root.clone(), path, is_folder: false }
    }

    /// The file that it names.
    pub(super) fn place(&self) -> Result<Place, Failure> {
        let path = self.path.parse();
        let path = path.map_err(|error| Failure::usage(format!("path {:?} {error}", self.path)))?;
        Ok(Place { root: self.root.clone(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_and_a_path_stand_behind_each_other() {
        for (text, root, path, is_folder) in [
            ("files:a/b", "files", "a/b", false),
            ("files/a/b", "files", "a/b", false),
            ("files:a/", "files", "a", true),
            ("files", "files", "", true),
            ("files:", "files", "", true),
            ("files:a:b", "files", "a:b", false),
        ] {
            let (root, path) = (root.to_owned(), path.to_owned());
            assert_eq!(text.parse(), Ok(Remote { root, path, is_folder }), "{text}");
        }
        "/etc/passwd".parse::<Remote>().unwrap_err();
        "".parse::<Remote>().unwrap_err();
        assert_eq!(
            "r:a".parse::<Remote>().unwrap().join("b").place().unwrap().to_string(),
            "r:a/b"
        );
        assert!("r:../a".parse::<Remote>().unwrap().place().is_err());
    }
}
