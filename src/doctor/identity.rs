//! Identities and peers: whether the keys are there, private and whole, and whom the agent trusts.
//!
//! The dates in a certificate are not looked at: they don't count ([`crate::trust`]).

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use jiff::Timestamp;

use super::finding::Finding;
use super::scene::Scene;
use crate::text::chain;
use crate::trust::tls::client_config;
use crate::trust::{Identity, Peers, TrustError};

/// How long before the end of a trust it is told.
const SOON: Duration = Duration::from_hours(14 * 24);

/// The agent's key is private and belongs to its certificate.
pub(super) fn agent(scene: &Scene) -> Finding {
    let listens = scene.config_or_default().is_some_and(|config| config.listen.is_some());
    let hint = "`baton agent init` makes it; so does the agent when it first listens for peers";
    match load(scene, "agent") {
        Some(finding) => finding,
        None if listens => Finding::warning("the agent has no identity yet").hint(hint),
        None => Finding::ok("the agent has no identity, and listens for no peers"),
    }
}

/// This user's key, with which it calls other machines.
pub(super) fn client(scene: &Scene) -> Finding {
    load(scene, "client")
        .unwrap_or_else(|| Finding::ok("none yet; `baton identity` makes it when it is needed"))
}

/// Reads an identity; `None` when there is none.
fn load(scene: &Scene, stem: &str) -> Option<Finding> {
    let folder = &scene.folders.config;
    let is_there = |ending: &str| {
        !matches!(folder.join(format!("{stem}.{ending}")).symlink_metadata(),
            Err(e) if e.kind() == ErrorKind::NotFound)
    };
    if !is_there("key") && !is_there("crt") {
        return None;
    }
    let used = Identity::load(folder, stem).and_then(|identity| {
        let fingerprint = identity.fingerprint();
        // TLS refuses a key that is another certificate's.
        client_config(&identity, fingerprint).map(|_| fingerprint)
    });
    Some(match used {
        Ok(fingerprint) => Finding::ok(format!("fingerprint {fingerprint}")),
        Err(error) => judge_refusal(&error),
    })
}

fn judge_refusal(error: &TrustError) -> Finding {
    if let TrustError::File { source, path } = error
        && source.kind() == ErrorKind::PermissionDenied
    {
        return Finding::needs_root(&path.display().to_string());
    }
    let told = Finding::error(chain(error));
    if let TrustError::KeyIsOpen { path, .. } = error {
        return told.hint(format!(
            "chmod 600 {}; if others may have read it, remove both files and make a new identity",
            path.display()
        ));
    }
    if matches!(error, TrustError::Tls(_)) {
        return told
            .hint("key and certificate don't belong together: put both back from one backup");
    }
    told.hint(
        "put both files, .key and .crt, back from a backup; without one remove both, and trust anew",
    )
}

/// Trust that has ended or soon does, or is of no use.
pub(super) fn peers(scene: &Scene) -> Finding {
    let listens = scene.config_or_default().is_some_and(|config| config.listen.is_some());
    match Peers::load(&scene.folders.config) {
        Ok(peers) => judge_peers(&peers, listens, Timestamp::now()),
        Err(TrustError::File { source, path }) if source.kind() == ErrorKind::PermissionDenied => {
            Finding::needs_root(&path.display().to_string())
        }
        Err(error) => Finding::error(chain(&error))
            .hint("a running agent keeps the last good set; one that starts now would not listen"),
    }
}

fn judge_peers(peers: &Peers, listens: bool, now: Timestamp) -> Finding {
    let count = peers.iter().count();
    if count == 0 && listens {
        // As after an install: who wants peers finds out at the first call.
        let found = "the agent listens for peers and trusts none yet (`baton agent trust`)";
        return Finding::ok(found);
    }
    let mut findings = vec![Finding::ok(format!("{count} trusted"))];
    let (mut names, mut fingerprints) = (BTreeMap::new(), BTreeMap::new());
    for peer in peers.iter() {
        *names.entry(peer.name.as_str()).or_insert(0) += 1;
        *fingerprints.entry(peer.fingerprint).or_insert(0) += 1;
        let name = &peer.name;
        match peer.expires {
            Some(end) if end <= now => findings.push(
                Finding::warning(format!("trust in {name} expired at {end}")).hint(format!(
                    "`baton agent untrust {name}`, or trust it anew with another --expires"
                )),
            ),
            Some(end) if end <= now + SOON => findings.push(
                Finding::warning(format!("trust in {name} expires at {end}"))
                    .hint(format!("`baton agent untrust {name}`, then trust it anew for longer")),
            ),
            Some(_) | None => {}
        }
    }
    let twice = "peers.toml was edited: leave one of them; the first one counts";
    for name in names.iter().filter(|(_, count)| **count > 1).map(|(name, _)| name) {
        findings.push(Finding::error(format!("several peers are called {name}")).hint(twice));
    }
    for fingerprint in fingerprints.iter().filter(|(_, count)| **count > 1).map(|(f, _)| f) {
        let found = format!("several peers have fingerprint {fingerprint}");
        findings.push(Finding::error(found).hint(twice));
    }
    Finding::all(findings)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;
    use crate::trust::Fingerprint;

    fn peer(name: &str, certificate: &str, expires: &str) -> String {
        let fingerprint = Fingerprint::of(certificate.as_bytes());
        let expires =
            if expires.is_empty() { String::new() } else { format!("expires = \"{expires}\"\n") };
        format!(
            "[[peer]]\nname = \"{name}\"\nfingerprint = \"{fingerprint}\"\nadded = \"2026-01-01T00:00:00Z\"\n{expires}"
        )
    }

    #[test]
    fn trust_that_ended_or_soon_does_is_told_and_who_is_there_twice() {
        let now: Timestamp = "2026-11-26T00:00:00Z".parse().unwrap();
        for (text, listens, verdict, word) in [
            (String::new(), false, Verdict::Ok, "0 trusted"),
            (String::new(), true, Verdict::Ok, "trusts none"),
            (peer("ci", "1", ""), true, Verdict::Ok, "1 trusted"),
            (peer("ci", "1", "2028-01-01T00:00:00Z"), true, Verdict::Ok, "1 trusted"),
            (peer("ci", "1", "2026-12-01T00:00:00Z"), true, Verdict::Warning, "expires"),
            (peer("ci", "1", "2026-11-26T00:00:00Z"), true, Verdict::Warning, "expired"),
            (peer("ci", "1", "") + &peer("ci", "2", ""), true, Verdict::Error, "called ci"),
            (peer("a", "1", "") + &peer("b", "1", ""), true, Verdict::Error, "fingerprint"),
        ] {
            let finding = judge_peers(&toml::from_str(&text).unwrap(), listens, now);
            assert_eq!(finding.verdict, verdict, "{text}: {finding:?}");
            assert!(finding.found.contains(word), "{text}: {finding:?}");
        }
    }
}
