//! The folder of the named mutexes: whose it is, whether locks there hold between processes, and whether a
//! cleaner removes them.
//!
//! Locks are tried, not guessed at, on a file without a name: nothing is left, whenever this is ended.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags};

use super::finding::Finding;
use super::scene::Scene;
use super::units;
use crate::mutex::os;

/// File systems of which other machines, or other programs, are a part; by statfs(2).
const NOT_LOCAL: [(u64, &str); 12] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x5346_414F, "AFS"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x7461_636F, "OCFS2"),
    (0x0116_1970, "GFS2"),
];
/// Where rules for cleaners are; a file hides those of the same name in later folders.
const RULES: [&str; 4] =
    ["/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/local/lib/tmpfiles.d", "/usr/lib/tmpfiles.d"];
/// Where the unit of an installed service is.
const UNITS: [&str; 2] =
    ["/etc/systemd/system/baton.service", "/usr/lib/systemd/system/baton.service"];
/// What to set when the folder is of no use.
const ANOTHER: &str =
    "BATON_MUTEX_DIR names another folder, the same for all that are to exclude each other";

/// It belongs to a user of baton's, and nobody else may write there.
pub(super) fn folder(scene: &Scene) -> Finding {
    let path = scene.mutexes();
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => {
            judge_folder(&path, found.uid(), found.mode(), &scene.users())
        }
        Ok(_) => Finding::error(format!("{} is no folder", path.display()))
            .hint("nothing of baton's made it: look at it, then move it away"),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            missing(&path)
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Finding::needs_root(&path.display().to_string())
        }
        Err(e) => Finding::error(format!("{}: {e}", path.display())).hint(ANOTHER),
    }
}

/// The first use makes it, if that can be done.
fn missing(path: &Path) -> Finding {
    let shown = path.display();
    let above = path.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok());
    let can_be_made = above.is_some_and(|above| {
        above.is_dir() && rustix::fs::access(above, rustix::fs::Access::WRITE_OK).is_ok()
    });
    if can_be_made {
        return Finding::ok(format!("no {shown} yet; the first use makes it"));
    }
    let above = above.unwrap_or(path).display();
    Finding::error(format!("there is no {shown}, and it can't be made in {above}"))
        .hint(format!("make it (mode 755), for an installed service by `systemd-tmpfiles --create baton.conf`; {ANOTHER}"))
}

fn judge_folder(path: &Path, owner: u32, mode: u32, users: &[u32]) -> Finding {
    let shown = path.display();
    let mode = mode & 0o7777;
    if mode & 0o022 != 0 {
        return Finding::error(format!(
            "others may write {shown} (mode {mode:o}): no mutex there is taken"
        ))
        .hint(format!("chmod go-w {shown}, and look at what is in it"));
    }
    if !users.contains(&owner) {
        return Finding::error(format!("{shown} belongs to user {owner}: this one can't use it"))
            .hint(format!("a mutex is for processes of one user; {ANOTHER}"));
    }
    Finding::ok(format!("{shown}, user {owner}, mode {mode:o}"))
}

/// How locks behave in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Tried {
    /// As they must.
    Hold,
    /// Two have one at the same time.
    Shared,
    /// It is lost with the one who took it, although who was started by it lives.
    Lost,
    /// There are none.
    Refused(String),
    /// It could not be tried.
    Untried(String),
}

/// A lock excludes other processes, and those that inherit it keep it.
pub(super) fn locks(scene: &Scene) -> Finding {
    let folder = scene.mutexes();
    let Some(there) = folder.ancestors().find(|path| path.is_dir()) else {
        return Finding::unknown(format!("{} is nowhere", folder.display()));
    };
    let kind = rustix::fs::statfs(there).ok().and_then(|found| {
        let magic = u64::try_from(found.f_type).ok()? & 0xFFFF_FFFF;
        NOT_LOCAL.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
    });
    judge_locks(there, kind, &try_locks(there))
}

/// A shell gets a locked file as its standard error and sleeps; this process gives its own descriptors of
/// it up, and tries to lock the same file anew.
fn try_locks(folder: &Path) -> Tried {
    let file = match unnamed(folder) {
        Ok(file) => file,
        Err(error) => return Tried::Untried(error.to_string()),
    };
    match os::try_lock_exclusive(&file) {
        Ok(true) => {}
        Ok(false) => return Tried::Untried("somebody else has the file".to_owned()),
        Err(error) => return Tried::Refused(error.to_string()),
    }
    let started = file.try_clone().and_then(sleeper);
    let mut shell = match started {
        Ok(shell) => shell,
        Err(error) => return Tried::Untried(format!("sh: {error}")),
    };
    let tried = try_against(file, shell.id());
    drop(shell.stdin.take());
    // It ends by itself: there is nothing more to read.
    drop(shell.wait());
    tried.unwrap_or_else(|error| Tried::Untried(error.to_string()))
}

/// A shell that has a file as its standard error, and sleeps until its input ends.
fn sleeper(file: File) -> io::Result<Child> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "read -r _"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file);
    #[expect(clippy::disallowed_methods, reason = "it only sleeps, and ends with its input")]
    shell.spawn()
}

fn try_against(file: File, shell: u32) -> io::Result<Tried> {
    let again = File::options().read(true).write(true).open(format!("/proc/{shell}/fd/2"))?;
    if os::try_lock_exclusive(&again)? {
        return Ok(Tried::Shared);
    }
    drop(file);
    Ok(if os::try_lock_exclusive(&again)? { Tried::Lost } else { Tried::Hold })
}

/// A file without a name. Where the file system makes none, it has one for a moment.
fn unnamed(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {
            let path = folder.join(format!(".doctor.{}", uuid::Uuid::now_v7().simple()));
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

fn judge_locks(folder: &Path, kind: Option<&str>, tried: &Tried) -> Finding {
    let shown = folder.display();
    let local = "use a local file system, below /run say";
    match (tried, kind) {
        (Tried::Hold, None) => {
            Finding::ok(format!("they hold between processes in {shown}, and are inherited"))
        }
        (Tried::Hold, Some(kind)) => Finding::warning(format!("{shown} is on {kind}"))
            .hint(format!("they hold on this machine; for how long nobody promises: {local}")),
        (Tried::Shared, _) => {
            Finding::error(format!("two processes have the same lock in {shown}"))
                .hint(format!("nothing excludes anything there: {local}; {ANOTHER}"))
        }
        (Tried::Lost, _) => {
            Finding::error(format!("a process does not keep the lock that it inherits in {shown}"))
                .hint(format!(
                    "a mutex there is free too early when a wrapper is killed: {local}; {ANOTHER}"
                ))
        }
        (Tried::Refused(why), _) => Finding::error(format!("there are none in {shown}: {why}"))
            .hint(format!("{local}; {ANOTHER}")),
        (Tried::Untried(why), _) => {
            Finding::unknown(format!("they can't be tried in {shown}: {why}"))
                .hint("run it as root, or as the mutexes' user, when there is room on the disk")
        }
    }
}

/// A rule of tmpfiles.d(5).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// Whether it keeps what is there, or has it removed after a time.
    keeps: bool,
    path: PathBuf,
    file: PathBuf,
}

/// No cleaner removes a held lock.
pub(super) fn cleaners(scene: &Scene) -> Finding {
    let mut files = BTreeMap::new();
    for folder in RULES.iter().rev() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            files.insert(entry.file_name(), entry.path());
        }
    }
    let rules: Vec<Rule> = files
        .values()
        .flat_map(|path| rules(path, &std::fs::read_to_string(path).unwrap_or_default()))
        .collect();
    let is_service = units::is_here() && UNITS.iter().any(|unit| Path::new(unit).exists());
    judge_cleaners(&scene.mutexes(), &rules, is_service)
}

/// The rules of a file that keep something or let it age.
fn rules(file: &Path, text: &str) -> Vec<Rule> {
    let lines = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let kind = fields.first()?.chars().next()?;
        let path = fields.get(1)?.replace("%t", "/run").replace("%%", "%");
        let path = path.strip_suffix("/*").map_or(path.clone(), str::to_owned);
        let ages = fields.get(5).is_some_and(|age| *age != "-");
        let keeps = kind == 'x';
        let is_one = keeps || (ages && "dDevqQC".contains(kind));
        is_one.then(|| Rule { keeps, path: path.into(), file: file.to_owned() })
    });
    lines.collect()
}

fn judge_cleaners(folder: &Path, rules: &[Rule], is_service: bool) -> Finding {
    let shown = folder.display();
    let meant = || rules.iter().filter(|rule| folder.starts_with(&rule.path));
    let line = format!("a line `x {shown}` in /etc/tmpfiles.d/baton.conf keeps them");
    if let Some(rule) = meant().find(|rule| rule.keeps) {
        return Finding::ok(format!("{} keeps {shown}", rule.file.display()));
    }
    if let Some(rule) = meant().next() {
        let found =
            format!("{} has old files below {} removed", rule.file.display(), rule.path.display());
        return Finding::warning(format!("{found}, and with them held locks")).hint(line);
    }
    // What is a user's own goes with the last logout, not by its age.
    if is_service && folder.starts_with("/run") && !folder.starts_with("/run/user") {
        let found = format!("no rule keeps {shown} from cleaners");
        return Finding::warning(found).hint(format!("{line}; the package brings it"));
    }
    Finding::ok(format!("no rule has {shown} cleaned"))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_folder_that_others_may_write_or_own_is_an_error() {
        for (owner, mode, verdict) in [
            (0, 0o40755, Verdict::Ok),
            (7, 0o40700, Verdict::Ok),
            (0, 0o40777, Verdict::Error),
            (0, 0o41777, Verdict::Error),
            (8, 0o40755, Verdict::Error),
        ] {
            let finding = judge_folder(Path::new("/m"), owner, mode, &[0, 7]);
            assert_eq!(finding.verdict, verdict, "{owner} {mode:o}");
        }
    }

    #[test]
    fn locks_are_tried_between_processes_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(try_locks(root.path()), Tried::Hold);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lock_that_excludes_nobody_or_is_not_inherited_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        for (is_locked, expected) in [(false, Tried::Shared), (true, Tried::Lost)] {
            let file = open().unwrap();
            if is_locked {
                assert!(os::try_lock_exclusive(&file).unwrap());
            }
            // It has the file open, and not by the lock's descriptor.
            let mut shell = sleeper(open().unwrap()).unwrap();
            assert_eq!(try_against(file, shell.id()).unwrap(), expected);
            drop(shell.stdin.take());
            shell.wait().unwrap();
        }
    }

    #[test]
    fn what_the_trial_shows_is_judged() {
        let untried = Tried::Untried("no".to_owned());
        for (kind, tried, verdict) in [
            (None, Tried::Hold, Verdict::Ok),
            (Some("NFS"), Tried::Hold, Verdict::Warning),
            (None, Tried::Shared, Verdict::Error),
            (None, Tried::Lost, Verdict::Error),
            (None, Tried::Refused("no".to_owned()), Verdict::Error),
            (None, untried, Verdict::Unknown),
        ] {
            assert_eq!(judge_locks(Path::new("/m"), kind, &tried).verdict, verdict, "{tried:?}");
        }
    }

    #[test]
    fn a_cleaner_is_a_warning_unless_a_rule_keeps_the_locks() {
        let text = "# a comment\nq /tmp 1777 root root 10d\nd /run/lock 0755 root root -\nx /tmp/kept/*\nD %t/aged 0755 root root 1d\n";
        let rules = rules(Path::new("/f"), text);
        assert_eq!(rules.len(), 3, "{rules:?}");
        for (folder, is_service, verdict) in [
            ("/tmp/m", false, Verdict::Warning),
            ("/tmp/kept", false, Verdict::Ok),
            ("/run/aged/m", false, Verdict::Warning),
            ("/run/lock/baton", false, Verdict::Ok),
            ("/run/lock/baton", true, Verdict::Warning),
            ("/run/user/7/baton/mutex", true, Verdict::Ok),
            ("/srv/m", true, Verdict::Ok),
        ] {
            let finding = judge_cleaners(Path::new(folder), &rules, is_service);
            assert_eq!(finding.verdict, verdict, "{folder}: {finding:?}");
        }
    }
}
