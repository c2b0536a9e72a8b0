//! The clock: time limits, leases, the end of a trust and every log rest on it.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::asking::ask;
use super::finding::Finding;
use super::scene::Scene;
use super::units;

/// No machine with this program was ever before it.
const EARLIEST: &str = "2026-01-01T00:00:00Z";
/// A clock beyond it is broken.
const LATEST: &str = "2100-01-01T00:00:00Z";
/// How far a file's time may be ahead: another machine may have written it.
const AHEAD: Duration = Duration::from_mins(2);
/// What stands there where systemd runs in a container, and of two kinds of containers.
const CONTAINER: [&str; 3] = ["/run/systemd/container", "/.dockerenv", "/run/.containerenv"];

/// Whether something keeps it right.
pub(super) fn synchronised(_: &Scene) -> Finding {
    let is_contained = CONTAINER.iter().any(|path| Path::new(path).exists());
    let said = units::is_here()
        .then(|| ask("timedatectl", &["show", "--property=NTPSynchronized", "--value"]).ok())
        .flatten();
    judge_synchronised(said.as_deref().map(str::trim), is_contained)
}

fn judge_synchronised(said: Option<&str>, is_contained: bool) -> Finding {
    match said {
        Some("yes") => Finding::ok("it is synchronised"),
        Some("no") if is_contained => {
            Finding::unknown("it is the host's, and not seen to be synchronised from here")
                .hint("on the host: `timedatectl`")
        }
        Some("no") => Finding::warning("nothing synchronises it")
            .hint("`timedatectl set-ntp true`, or another NTP service such as chrony"),
        _ => Finding::unknown("nobody here says whether it is synchronised")
            .hint("`chronyc tracking` or `ntpq -p` where such a service runs"),
    }
}

/// The year makes sense, and it did not go back.
pub(super) fn plausible(scene: &Scene) -> Finding {
    let files = [
        scene.folders.state.join("agent.db"),
        scene.folders.state.join("agent.db-wal"),
        scene.folders.config.join("agent.crt"),
        scene.folders.config.join("peers.toml"),
    ];
    let written = files.iter().filter_map(|path| path.metadata().ok()?.modified().ok());
    let newest = written.max().and_then(|time| Timestamp::try_from(time).ok());
    judge_plausible(Timestamp::now(), newest)
}

fn judge_plausible(now: Timestamp, newest: Option<Timestamp>) -> Finding {
    let at = |text: &str| text.parse::<Timestamp>().unwrap_or(Timestamp::UNIX_EPOCH);
    let set = "`timedatectl set-time`, or let NTP set it";
    if now < at(EARLIEST) || now > at(LATEST) {
        return Finding::error(format!("it says {now}")).hint(set);
    }
    match newest {
        Some(newest) if newest > now + AHEAD => Finding::warning(format!(
            "it says {now}, and the agent's files were written at {newest}: it went back"
        ))
        .hint(set),
        Some(_) | None => Finding::ok(format!("it says {}", now.strftime("%Y-%m-%d %H:%M:%S UTC"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn a_clock_that_nothing_keeps_right_is_told_but_a_container_s_is_its_host_s() {
        for (said, is_contained, verdict) in [
            (Some("yes"), false, Verdict::Ok),
            (Some("no"), false, Verdict::Warning),
            (Some("no"), true, Verdict::Unknown),
            (None, false, Verdict::Unknown),
        ] {
            assert_eq!(judge_synchronised(said, is_contained).verdict, verdict, "{said:?}");
        }
    }

    #[test]
    fn a_year_without_sense_and_a_clock_that_went_back_are_told() {
        for (now, newest, verdict) in [
            ("2026-11-26T00:00:00Z", None, Verdict::Ok),
            ("1970-01-01T00:00:07Z", None, Verdict::Error),
            ("2126-01-01T00:00:00Z", None, Verdict::Error),
            ("2026-11-26T00:00:00Z", Some("2026-11-26T00:01:00Z"), Verdict::Ok),
            ("2026-11-26T00:00:00Z", Some("2026-11-27T00:00:00Z"), Verdict::Warning),
        ] {
            let newest = newest.map(|text: &str| text.parse().unwrap());
            assert_eq!(judge_plausible(now.parse().unwrap(), newest).verdict, verdict, "{now}");
        }
    }
}
