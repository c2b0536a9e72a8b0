//! The system service: whether its unit is there, enabled and well, and still set so that a restart touches
//! no script.

use std::collections::BTreeSet;

use super::asking::AskError;
use super::finding::Finding;
use super::scene::Scene;
use super::units::{self, Manager, Properties, Unit};

/// The fewest open files that are enough for a full queue.
const MIN_OPEN_FILES: u64 = 16 * 1024;
/// The fewest tasks.
const MIN_TASKS: u64 = 4096;
/// How many restarts by itself are told.
const MANY_RESTARTS: u64 = 3;

/// Installed, enabled, active.
pub(super) fn unit(scene: &Scene) -> Finding {
    let names = [
        "LoadState",
        "LoadError",
        "ActiveState",
        "SubState",
        "UnitFileState",
        "NRestarts",
        "Result",
        "MainPID",
        "NeedDaemonReload",
    ];
    let agent = scene.process().map(|process| process.pid);
    ask(scene, &names, |unit, properties| {
        let lingers = match unit.manager {
            Manager::System => None,
            Manager::User(uid) => units::lingers(uid),
        };
        let told = judge_unit(unit, properties, agent);
        Finding::all([Some(told), judge_linger(lingers)].into_iter().flatten().collect())
    })
}

/// What protects scripts from a restart of the agent.
pub(super) fn settings(scene: &Scene) -> Finding {
    let names = [
        "LoadState",
        "Type",
        "KillMode",
        "OOMPolicy",
        "TasksMax",
        "LimitNOFILE",
        "WatchdogUSec",
        "DropInPaths",
    ];
    ask(scene, &names, judge_settings)
}

/// Other instances: those of different users don't exclude each other.
pub(super) fn instances(_: &Scene) -> Finding {
    if !units::is_here() {
        return Finding::ok("systemd does not run here");
    }
    match units::instances() {
        Ok(instances) => judge_instances(&instances),
        Err(error) => unasked(&error),
    }
}

fn ask(scene: &Scene, names: &[&str], judge: impl Fn(&Unit, &Properties) -> Finding) -> Finding {
    if !units::is_here() {
        return Finding::ok("systemd does not run here");
    }
    let Some(unit) = units::unit(scene) else {
        return Finding::ok("no unit of systemd belongs to these folders");
    };
    match units::show_of(&unit, names) {
        Ok(properties) if properties.of("LoadState") == "not-found" => {
            Finding::ok(format!("{} is not installed", unit.name))
        }
        Ok(properties) => judge(&unit, &properties),
        Err(error) => unasked(&error),
    }
}

fn unasked(error: &AskError) -> Finding {
    Finding::unknown(crate::text::chain(error))
}

/// A user's manager ends with the last login, unless it lingers.
fn judge_linger(lingers: Option<bool>) -> Option<Finding> {
    (lingers == Some(false)).then(|| {
        let found = "its user does not linger: it ends at the logout, with what runs, and does not start with the machine";
        Finding::warning(found).hint("`loginctl enable-linger`")
    })
}

fn judge_unit(unit: &Unit, properties: &Properties, agent: Option<u32>) -> Finding {
    let name = &unit.name;
    let systemctl = format!("systemctl{}", unit.manager.option());
    let journal = format!("journalctl{} -u {name} -n 50", unit.manager.option());
    let load = properties.of("LoadState");
    if load != "loaded" {
        return Finding::error(format!("{name} is {load}: {}", properties.of("LoadError"))).hint(
            format!(
                "`{systemctl} status {name}` says why; `baton service install` writes the system's anew"
            ),
        );
    }
    let active = properties.of("ActiveState");
    let mut findings = vec![match active {
        "active" | "reloading" => Finding::ok(format!("{name} is active")),
        "failed" => Finding::error(format!("{name} has failed ({})", properties.of("Result")))
            .hint(format!("`{journal}` says why; then `{systemctl} restart {name}`")),
        "activating" | "deactivating" => {
            Finding::warning(format!("{name} is {active} ({})", properties.of("SubState")))
                .hint(format!("if it stays so: `{journal}`"))
        }
        _ => Finding::warning(format!("{name} is {active}"))
            .hint(format!("`{systemctl} start {name}`")),
    }];
    match properties.of("UnitFileState") {
        state @ ("disabled" | "masked" | "masked-runtime") => findings.push(
            Finding::warning(format!(
                "it is {state}: it does not come back after a restart of the machine"
            ))
            .hint(format!("`{systemctl} unmask {name}`, `{systemctl} enable {name}`")),
        ),
        state => findings.push(Finding::ok(state)),
    }
    match properties.number("NRestarts") {
        Some(count) if count >= MANY_RESTARTS => {
            findings.push(
                Finding::warning(format!("systemd has restarted it {count} times")).hint(format!(
                    "`{journal}` says why; `{systemctl} reset-failed {name}` counts anew"
                )),
            );
        }
        Some(count) => findings.push(Finding::ok(format!("{count} restarts by itself"))),
        None => {}
    }
    if properties.of("NeedDaemonReload") == "yes" {
        let found = "its files were changed since systemd read them";
        findings.push(Finding::warning(found).hint(format!("`{systemctl} daemon-reload`")));
    }
    let main = properties.number("MainPID").filter(|pid| *pid != 0);
    if let (Some(main), Some(agent)) = (main, agent)
        && main != u64::from(agent)
    {
        let found = format!("the agent on these folders is pid {agent}, the service's is {main}");
        findings.push(
            Finding::warning(found)
                .hint(format!("end pid {agent}, then `{systemctl} restart {name}`")),
        );
    }
    Finding::all(findings)
}

fn judge_settings(unit: &Unit, properties: &Properties) -> Finding {
    let at_least = |name: &str, least: u64| properties.number(name).is_some_and(|n| n >= least);
    let kill_mode = properties.of("KillMode");
    let watchdog = properties.of("WatchdogUSec");
    let wrong = [
        (
            kill_mode != "process",
            format!("KillMode={kill_mode}"),
            "with another one than `process` a stop or restart of the agent kills what runs",
        ),
        (
            properties.of("OOMPolicy") != "continue",
            format!("OOMPolicy={}", properties.of("OOMPolicy")),
            "with another one than `continue` a script that takes all memory ends the agent too",
        ),
        (
            !at_least("TasksMax", MIN_TASKS),
            format!("TasksMax={}", properties.of("TasksMax")),
            "it counts the scripts' processes too: `infinity`",
        ),
        (
            !at_least("LimitNOFILE", MIN_OPEN_FILES),
            format!("LimitNOFILE={}", properties.of("LimitNOFILE")),
            "each script takes a few open files: 65536 or more",
        ),
        (
            matches!(watchdog, "" | "0"),
            format!("WatchdogUSec={watchdog}"),
            "without it an agent that hangs is not restarted",
        ),
        (
            !properties.of("Type").starts_with("notify"),
            format!("Type={}", properties.of("Type")),
            "with another one than `notify` systemd does not know when the agent serves",
        ),
    ];
    let drop_ins = properties.of("DropInPaths");
    let place = if drop_ins.is_empty() { String::new() } else { format!("; look into {drop_ins}") };
    let mut findings = vec![Finding::ok(match drop_ins {
        "" => format!("{} is as baton wants it", unit.name),
        paths => format!("{} is as baton wants it, with {paths}", unit.name),
    })];
    for (is_wrong, found, why) in wrong {
        if is_wrong {
            // What kills scripts is no matter of taste.
            let told = if found.starts_with("KillMode") {
                Finding::error(found)
            } else {
                Finding::warning(found)
            };
            findings.push(told.hint(format!("{why}{place}")));
        }
    }
    Finding::all(findings)
}

fn judge_instances(instances: &[Properties]) -> Finding {
    let loaded: Vec<_> = instances.iter().filter(|unit| unit.of("LoadState") == "loaded").collect();
    let user = |unit: &Properties| match unit.of("User") {
        "" => "root".to_owned(),
        user => user.to_owned(),
    };
    let users: BTreeSet<String> = loaded.iter().map(|unit| user(unit)).collect();
    let names: Vec<String> = loaded
        .iter()
        .map(|unit| format!("{} ({}, {})", unit.of("Id"), unit.of("ActiveState"), user(unit)))
        .collect();
    if users.len() > 1 {
        let found = format!("they run as different users: {}", names.join(", "));
        return Finding::warning(found).hint(
            "a mutex is for processes of one user: give all instances that are to exclude each other the same User=",
        );
    }
    Finding::ok(if names.is_empty() { "none".to_owned() } else { names.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    const WELL: &str = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nNRestarts=0\nMainPID=7\nNeedDaemonReload=no\n";
    const SET: &str = "Type=notify\nKillMode=process\nOOMPolicy=continue\nTasksMax=infinity\nLimitNOFILE=65536\nWatchdogUSec=30s\nDropInPaths=\n";

    fn unit(manager: Manager) -> Unit {
        Unit { name: "baton.service".to_owned(), manager }
    }

    /// With other lines behind: the last one counts.
    fn with(text: &str, more: &str) -> Properties {
        Properties::parse(&format!("{text}{more}\n"))
    }

    #[test]
    fn a_unit_that_is_not_well_is_told() {
        for (change, verdict, word) in [
            ("", Verdict::Ok, "active"),
            ("LoadState=bad-setting", Verdict::Error, "bad-setting"),
            ("ActiveState=failed", Verdict::Error, "failed"),
            ("ActiveState=inactive", Verdict::Warning, "inactive"),
            ("ActiveState=activating", Verdict::Warning, "activating"),
            ("UnitFileState=disabled", Verdict::Warning, "disabled"),
            ("NRestarts=3", Verdict::Warning, "3 times"),
            ("NeedDaemonReload=yes", Verdict::Warning, "changed"),
            ("MainPID=8", Verdict::Warning, "service's is 8"),
            ("MainPID=0", Verdict::Ok, "active"),
        ] {
            let finding = judge_unit(&unit(Manager::System), &with(WELL, change), Some(7));
            assert_eq!(finding.verdict, verdict, "{change}: {finding:?}");
            assert!(finding.found.contains(word), "{change}: {finding:?}");
        }
    }

    #[test]
    fn a_user_s_unit_has_hints_for_that_user_s_manager() {
        let failed = with(WELL, "ActiveState=failed");
        let finding = judge_unit(&unit(Manager::User(7)), &failed, Some(7));
        let hint = "`journalctl --user -u baton.service -n 50` says why; then `systemctl --user restart baton.service`";
        assert_eq!(finding.hints, [hint]);
        let changed = with(WELL, "NeedDaemonReload=yes");
        let finding = judge_unit(&unit(Manager::User(7)), &changed, Some(7));
        assert_eq!(finding.hints, ["`systemctl --user daemon-reload`"]);
        for (lingers, expected) in [(None, false), (Some(true), false), (Some(false), true)] {
            assert_eq!(judge_linger(lingers).is_some(), expected, "{lingers:?}");
        }
    }

    #[test]
    fn settings_that_endanger_scripts_are_told_with_the_drop_in() {
        for (change, verdict) in [
            ("", Verdict::Ok),
            ("KillMode=control-group", Verdict::Error),
            ("OOMPolicy=stop", Verdict::Warning),
            ("TasksMax=512", Verdict::Warning),
            ("LimitNOFILE=1024", Verdict::Warning),
            ("WatchdogUSec=0", Verdict::Warning),
            ("Type=simple", Verdict::Warning),
            ("LimitNOFILE=infinity", Verdict::Ok),
        ] {
            let finding = judge_settings(&unit(Manager::System), &with(SET, change));
            assert_eq!(finding.verdict, verdict, "{change}: {finding:?}");
        }
        let changed =
            with(SET, "KillMode=mixed\nDropInPaths=/etc/systemd/system/baton.service.d/x.conf");
        assert!(judge_settings(&unit(Manager::System), &changed).hints[0].contains("x.conf"));
    }

    #[test]
    fn instances_of_different_users_are_told() {
        let unit = |name: &str, user: &str| {
            Properties::parse(&format!(
                "Id={name}\nLoadState=loaded\nActiveState=active\nUser={user}\n"
            ))
        };
        let same = [unit("baton.service", ""), unit("baton@a.service", "root")];
        assert_eq!(judge_instances(&same).verdict, Verdict::Ok);
        let different = [unit("baton.service", ""), unit("baton@a.service", "deploy")];
        let finding = judge_instances(&different);
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.found.contains("deploy"), "{finding:?}");
        assert_eq!(judge_instances(&[]), Finding::ok("none"));
    }
}
