//! Another machine's agent: what can be asked of it from here.

use std::io::ErrorKind;
use std::time::Duration;

use jiff::Timestamp;

use super::Check;
use super::agent;
use super::finding::Finding;
use super::scene::{self, Scene, Told};
use crate::client::{Client, ClientError, ConnectError, connect};
use crate::config::Directories;
use crate::deploy::load;
use crate::text::chain;
use crate::trust::{Fingerprint, Identity};

/// What is asked of a target, in the order in which it is shown.
pub const TARGET_CHECKS: &[Check] = &[
    Check { name: "target.reached", look: reached },
    Check { name: "target.version", look: version },
    Check { name: "target.draining", look: draining },
    Check { name: "target.store", look: store },
    Check { name: "target.clock", look: clock },
];

/// How far apart clocks may be: what each side shows of the other's times is off by it.
const MAX_SKEW: Duration = Duration::from_secs(5);
/// From how far on limits and expiries are wrong.
const GREAT_SKEW: Duration = Duration::from_mins(5);

/// Which machine.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// A name from `targets.toml`, or HOST:PORT.
    pub target: String,
    /// The agent's, when it is not in `targets.toml`.
    pub fingerprint: Option<Fingerprint>,
}

/// Asks the target what it is.
pub(super) fn ask(wanted: &Wanted, folders: &Directories) -> Told {
    let (address, fingerprint) = match find(wanted, folders) {
        Ok(found) => found,
        Err(finding) => return Told::Unasked(finding),
    };
    let identity = match Identity::load(&folders.config, "client") {
        Ok(identity) => identity,
        Err(crate::trust::TrustError::File { source, .. })
            if source.kind() == ErrorKind::NotFound =>
        {
            let hint = "`baton identity` makes it; the target trusts it by `baton agent trust`";
            let found = "this user has no identity to call with";
            return Told::Unasked(Finding::error(found).hint(hint));
        }
        Err(error) => {
            return Told::Unasked(Finding::error(chain(&error)).hint("`baton doctor` says more"));
        }
    };
    scene::answer(
        async move { Ok(Client::new(connect::tcp(&address, fingerprint, &identity).await?)) },
    )
}

/// Where it is, and what its fingerprint must be.
fn find(wanted: &Wanted, folders: &Directories) -> Result<(String, Fingerprint), Finding> {
    let known = load::known_targets(&folders.config).map_err(|error| {
        Finding::error(chain(&error)).hint("`baton target list` says all of it")
    })?;
    match (known.named(&wanted.target), wanted.fingerprint) {
        (Some(known), given) => Ok((known.address.clone(), given.unwrap_or(known.fingerprint))),
        (None, Some(fingerprint)) => Ok((wanted.target.clone(), fingerprint)),
        (None, None) => Err(Finding::error(format!("target {:?} is not known", wanted.target))
            .hint("`baton target list` shows the known ones; HOST:PORT needs --fingerprint")),
    }
}

/// What the target said, for a check that needs an answer.
fn told(scene: &Scene, judge: impl Fn(&Told) -> Finding) -> Finding {
    scene.target().map_or_else(|| judge(&Told::Late), |told| judge(&told))
}

fn of_answer(told: &Told, judge: impl Fn(&crate::wire::v1::InfoResponse) -> Finding) -> Finding {
    match told {
        Told::Answered { info, .. } => judge(info),
        Told::Failed(_) | Told::Unasked(_) | Told::Late => Finding::unknown("it was not reached"),
    }
}

/// It answers, is the one that is meant, and trusts this user.
fn reached(scene: &Scene) -> Finding {
    told(scene, judge_reached)
}

fn judge_reached(told: &Told) -> Finding {
    let error = match told {
        Told::Answered { info, .. } => return Finding::ok(agent::busy(info)),
        Told::Unasked(finding) => return finding.clone(),
        Told::Late => {
            return Finding::error("it takes connections and does not answer, or packets get lost")
                .hint("is the port open for this machine (firewall)? then `baton doctor` there");
        }
        Told::Failed(error) => error,
    };
    let found = Finding::error(chain(error));
    if let ClientError::Connect(ConnectError::NotTrusted { own, .. }) = error {
        return found.hint(format!("on the target: baton agent trust {own} --name NAME"));
    }
    if matches!(error, ClientError::Connect(ConnectError::WrongAgent { .. })) {
        return found
            .hint("if the machine was set up anew: `baton target remove` it and add it again");
    }
    found.hint("is it up, and is the port open for this machine? then `baton doctor` there")
}

/// It is of this version.
fn version(scene: &Scene) -> Finding {
    told(scene, |told| {
        of_answer(told, |info| judge_version(&info.version, env!("CARGO_PKG_VERSION")))
    })
}

fn judge_version(agents: &str, own: &str) -> Finding {
    if agents == own {
        return Finding::ok(format!("{agents}, as this command"));
    }
    Finding::warning(format!("the agent is {agents}, this command {own}"))
        .hint("what only the newer one knows does not work: bring both to one version")
}

/// It takes scripts.
fn draining(scene: &Scene) -> Finding {
    told(scene, |told| of_answer(told, agent::judge_draining))
}

/// Its database takes changes.
fn store(scene: &Scene) -> Finding {
    told(scene, |told| of_answer(told, agent::judge_store))
}

/// Its clock and this one agree.
fn clock(scene: &Scene) -> Finding {
    told(scene, |told| match told {
        Told::Answered { clocks: Some((its, own)), .. } => judge_clock(*its, *own),
        Told::Answered { clocks: None, .. } => Finding::unknown("it does not say its time"),
        Told::Failed(_) | Told::Unasked(_) | Told::Late => Finding::unknown("it was not reached"),
    })
}

fn judge_clock(its: Timestamp, own: Timestamp) -> Finding {
    let skew = (its - own).abs();
    let skew = Duration::try_from(skew).unwrap_or_default();
    let found = format!("its clock and this one are {} s apart, give or take one", skew.as_secs());
    let hint = "let NTP set both: `timedatectl set-ntp true`";
    if skew > GREAT_SKEW {
        return Finding::error(found).hint(hint);
    }
    if skew > MAX_SKEW {
        return Finding::warning(found).hint(hint);
    }
    Finding::ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn clocks_that_are_apart_are_told() {
        let own: Timestamp = "2026-11-26T00:10:00Z".parse().unwrap();
        for (its, verdict) in [
            ("2026-11-26T00:10:00Z", Verdict::Ok),
            ("2026-11-26T00:10:05Z", Verdict::Ok),
            ("2026-11-26T00:09:50Z", Verdict::Warning),
            ("2026-11-26T00:15:01Z", Verdict::Error),
            ("2026-11-26T00:00:00Z", Verdict::Error),
        ] {
            assert_eq!(judge_clock(its.parse().unwrap(), own).verdict, verdict, "{its}");
        }
    }

    #[test]
    fn who_does_not_trust_this_user_is_told_what_to_do() {
        let own = Fingerprint::of(b"own");
        let refused = ConnectError::NotTrusted { address: "a:1".to_owned(), own };
        let finding = judge_reached(&Told::Failed(refused.into()));
        assert_eq!(finding.verdict, Verdict::Error);
        assert!(finding.hints[0].contains(&own.to_string()), "{finding:?}");
        assert_eq!(judge_reached(&Told::Late).verdict, Verdict::Error);
        assert_eq!(judge_version("1.0.0", "1.1.0").verdict, Verdict::Warning);
    }
}
