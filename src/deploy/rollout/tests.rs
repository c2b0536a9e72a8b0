//! Rules of the walk, each by what starts when.

use std::num::NonZeroU32;

use super::super::plan::{
    Acquisitions, Isolation, Job, PlannedTarget, Stage as PlannedStage, TargetKind, Unreachable,
    Wave,
};
use super::*;
use crate::trust::Fingerprint;

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

/// A plan over targets `a`, `b`, …: its waves by size, its stages by the steps' names, conditions and limits.
fn plan(waves: &[usize], stages: &[&[(&str, Condition, u32)]]) -> Plan {
    let names: Vec<String> =
        (b'a'..).take(waves.iter().sum()).map(|c| char::from(c).to_string()).collect();
    let target = |name: &String| PlannedTarget {
        name: name.clone(),
        address: "host:1".to_owned(),
        fingerprint: Fingerprint::of(b"x"),
        kind: TargetKind::Machine,
        is_canary: false,
        away_limit: crate::client::AWAY_LIMIT,
    };
    let job = |name: &String| Job {
        target: name.clone(),
        isolation: Isolation::Exclusive,
        script: None,
        arguments: Vec::new(),
        environment: std::collections::BTreeMap::new(),
        package_version: None,
        run_time_limit: None,
        queue_time_limit: None,
        away_limit: crate::client::AWAY_LIMIT,
        labels: std::collections::BTreeMap::new(),
    };
    let step = |(name, condition, parallelism): &(&str, Condition, u32)| {
        let is_pause = name.starts_with("pause");
        let message = "go on?".to_owned();
        PlannedStep {
            number: 1,
            name: (*name).to_owned(),
            condition: *condition,
            action: if is_pause { Action::Pause { message } } else { Action::Script },
            parallelism: number(*parallelism),
            retry: None,
            jobs: if is_pause { Vec::new() } else { names.iter().map(job).collect() },
        }
    };
    let mut left = names.clone();
    let waves =
        waves.iter().map(|size| Wave { is_canary: false, targets: left.drain(..*size).collect() });
    let waves = waves.collect();
    Plan {
        project: "p".to_owned(),
        environment: "e".to_owned(),
        tenant: None,
        release: None,
        concurrency_tag: "p/e".to_owned(),
        etcd: Vec::new(),
        targets: names.iter().map(target).collect(),
        max_failures: 0,
        unreachable: Unreachable::Fail,
        waves,
        acquisitions: Acquisitions { parallelism: number(1), packages: Vec::new() },
        stages: stages
            .iter()
            .map(|steps| PlannedStage {
                parallelism: number(10),
                steps: steps.iter().map(step).collect(),
            })
            .collect(),
        remarks: Vec::new(),
    }
}

/// Works a roll-out off; jobs end in the order in which they started. Says what started, grouped by what
/// could start at once.
fn walk(plan: &Plan, how: impl Fn(&str, Option<usize>) -> Ended) -> (Vec<String>, Rollout) {
    let mut rollout = Rollout::new(plan);
    let (mut told, mut running) = (Vec::new(), VecDeque::new());
    loop {
        let starts = rollout.start_next();
        let name = |job: &JobKey| {
            let step = &plan.stages[job.stage].steps[job.step].name;
            match job.target {
                Some(target) => format!("{step}:{}", plan.targets[target].name),
                None => step.clone(),
            }
        };
        if !starts.is_empty() {
            told.push(starts.iter().map(name).collect::<Vec<_>>().join(" "));
        }
        running.extend(starts);
        let Some(job) = running.pop_front() else {
            assert!(rollout.is_over());
            return (told, rollout);
        };
        let step = &plan.stages[job.stage].steps[job.step].name;
        rollout.ended(job, how(step, job.target));
    }
}

fn good(_: &str, _: Option<usize>) -> Ended {
    Ended::Succeeded
}

fn fails(step: &'static str, target: usize) -> impl Fn(&str, Option<usize>) -> Ended {
    move |name, place| {
        let hit = name == step && place == Some(target);
        if hit { Ended::Failed("broke".to_owned()) } else { Ended::Succeeded }
    }
}

const SUCCESS: Condition = Condition::Success;

#[test]
fn rule_1_a_wave_goes_through_all_stages_before_the_next() {
    let plan = plan(&[1, 2], &[&[("x", SUCCESS, 9)], &[("y", SUCCESS, 9)]]);
    assert_eq!(walk(&plan, good).0, ["x:a", "y:a", "x:b x:c", "y:b y:c"]);
}

#[test]
fn rule_2_a_step_runs_on_so_many_targets_at_once() {
    let plan = plan(&[5], &[&[("x", SUCCESS, 2)]]);
    assert_eq!(walk(&plan, good).0, ["x:a x:b", "x:c", "x:d", "x:e"]);
}

#[test]
fn rule_2_so_many_steps_of_a_stage_run_at_once() {
    let steps = [("x", SUCCESS, 9), ("y", SUCCESS, 9), ("z", SUCCESS, 9)];
    let mut plan = plan(&[1], &[&steps, &[("end", SUCCESS, 9)]]);
    assert_eq!(walk(&plan, good).0, ["x:a y:a z:a", "end:a"]);
    plan.stages[0].parallelism = number(2);
    assert_eq!(walk(&plan, good).0, ["x:a y:a", "z:a", "end:a"]);
}

#[test]
fn rule_3_a_target_that_failed_gets_steps_for_failure_and_the_budget_lets_the_others_go_on() {
    let stages: [&[_]; 4] = [
        &[("x", SUCCESS, 9)],
        &[("y", SUCCESS, 9)],
        &[("undo", Condition::Failure, 9)],
        &[("tidy", Condition::Always, 9)],
    ];
    let mut plan = plan(&[3], &stages);
    plan.max_failures = 1;
    let (told, rollout) = walk(&plan, fails("x", 1));
    assert_eq!(told, ["x:a x:b x:c", "y:a y:c", "undo:b", "tidy:a tidy:b tidy:c"]);
    let how = Standing::Failed { step: "x".to_owned(), how: "broke".to_owned() };
    assert_eq!(rollout.standings(), [Standing::Done, how, Standing::Done]);
    assert_eq!(rollout.ending(), None);
}

#[test]
fn rule_4_one_failure_too_many_ends_steps_for_success_everywhere_and_begins_no_wave() {
    let stages: [&[_]; 4] = [
        &[("x", SUCCESS, 1)],
        &[("y", SUCCESS, 9)],
        &[("undo", Condition::Failure, 9)],
        &[("tidy", Condition::Always, 9)],
    ];
    let plan = plan(&[3, 2], &stages);
    let (told, rollout) = walk(&plan, fails("x", 1));
    // c was never begun: nothing is to be undone there.
    assert_eq!(told, ["x:a", "x:b", "undo:a undo:b", "tidy:a tidy:b"]);
    assert_eq!(rollout.ending(), Some("a target failed"));
    assert_eq!(rollout.standings()[2..], [Standing::Fresh, Standing::Fresh, Standing::Fresh]);
}

#[test]
fn rule_4_who_got_all_its_steps_before_the_end_is_done() {
    let stages: [&[_]; 2] = [&[("x", SUCCESS, 1)], &[("y", SUCCESS, 1)]];
    let plan = plan(&[1, 2, 1], &stages);
    let (told, rollout) = walk(&plan, fails("y", 2));
    assert_eq!(told, ["x:a", "y:a", "x:b", "x:c", "y:b", "y:c"]);
    let how = Standing::Failed { step: "y".to_owned(), how: "broke".to_owned() };
    assert_eq!(rollout.standings(), [Standing::Done, Standing::Done, how, Standing::Fresh]);
    let (_, rollout) = walk(&plan, fails("x", 2));
    assert_eq!(rollout.standings()[1], Standing::Good);
}

#[test]
fn rule_4_no_canary_may_fail_whatever_the_budget() {
    let mut plan = plan(&[2, 2], &[&[("x", SUCCESS, 9)]]);
    plan.max_failures = 4;
    assert_eq!(walk(&plan, fails("x", 0)).0, ["x:a x:b", "x:c x:d"]);
    plan.waves[0].is_canary = true;
    let (told, rollout) = walk(&plan, fails("x", 0));
    assert_eq!((told, rollout.ending()), (vec!["x:a x:b".to_owned()], Some("a canary failed")));
}

#[test]
fn rule_5_a_pause_is_asked_once_and_a_refusal_is_an_end() {
    let stages: [&[_]; 3] = [&[("x", SUCCESS, 9)], &[("pause", SUCCESS, 1)], &[("y", SUCCESS, 9)]];
    let plan = plan(&[1, 1], &stages);
    assert_eq!(walk(&plan, good).0, ["x:a", "pause", "y:a", "x:b", "y:b"]);
    let refused = |name: &str, _| match name {
        "pause" => Ended::Failed("refused by ann".to_owned()),
        _ => Ended::Succeeded,
    };
    let (told, rollout) = walk(&plan, refused);
    assert_eq!(told, ["x:a", "pause"]);
    assert_eq!(rollout.ending(), Some("step \"pause\": refused by ann"));
}

#[test]
fn rule_5_a_pause_for_which_nobody_is_left_is_not_asked() {
    let stages: [&[_]; 2] = [&[("x", SUCCESS, 9)], &[("pause", SUCCESS, 1)]];
    let plan = plan(&[1], &stages);
    assert_eq!(walk(&plan, fails("x", 0)).0, ["x:a"]);
}

#[test]
fn rule_6_who_stops_it_starts_nothing_any_more() {
    let plan = plan(&[3], &[&[("x", SUCCESS, 1)], &[("tidy", Condition::Always, 9)]]);
    let mut rollout = Rollout::new(&plan);
    let first = rollout.start_next();
    rollout.stop("interrupted");
    assert_eq!((rollout.start_next(), rollout.is_over()), (Vec::new(), false));
    rollout.ended(first[0], Ended::Failed("cancelled".to_owned()));
    assert_eq!((rollout.start_next(), rollout.is_over()), (Vec::new(), true));
    assert_eq!(rollout.ending(), Some("interrupted"));
}

#[test]
fn who_is_left_out_gets_nothing_more_and_is_no_failure() {
    let plan = plan(&[3], &[&[("x", SUCCESS, 9)], &[("tidy", Condition::Always, 9)]]);
    let busy = |name: &str, target| match (name, target) {
        ("x", Some(1)) => Ended::LeftOut("busy".to_owned()),
        _ => Ended::Succeeded,
    };
    let (told, rollout) = walk(&plan, busy);
    assert_eq!((told.join("; ").as_str(), rollout.ending()), ("x:a x:b x:c; tidy:a tidy:c", None));
    let mut rollout = Rollout::new(&plan);
    rollout.leave_out(0, "unreachable".to_owned());
    assert_eq!(rollout.start_next().len(), 2);
}

#[test]
fn who_is_left_out_when_part_of_the_work_is_done_or_when_it_failed_is_a_failure() {
    let stages: [&[_]; 2] = [&[("x", SUCCESS, 9)], &[("y", Condition::Always, 9)]];
    let mut plan = plan(&[3], &stages);
    plan.max_failures = 3;
    let busy = |name: &str, target| match (name, target) {
        ("x", Some(0)) => Ended::Failed("broke".to_owned()),
        ("y", Some(0 | 1)) => Ended::LeftOut("busy".to_owned()),
        _ => Ended::Succeeded,
    };
    let failed = |step: &str, how: &str| Standing::Failed { step: step.into(), how: how.into() };
    let half = failed("y", "busy, and part of the work is done there");
    let (_, rollout) = walk(&plan, busy);
    assert_eq!(rollout.standings(), [failed("x", "broke"), half, Standing::Done]);
    // A look at a machine is no work.
    plan.stages[0].steps[0].action = Action::HealthCheck;
    let (_, rollout) = walk(&plan, busy);
    assert_eq!(rollout.standings()[1], Standing::LeftOut("busy".to_owned()));
}

#[test]
fn who_is_left_out_of_one_of_two_steps_side_by_side_has_failed_when_the_other_is_done() {
    let plan = plan(&[1], &[&[("x", SUCCESS, 9), ("y", SUCCESS, 9)]]);
    for left_out in ["x", "y"] {
        let busy = |name: &str, _| {
            if name == left_out { Ended::LeftOut("busy".to_owned()) } else { Ended::Succeeded }
        };
        let (_, rollout) = walk(&plan, busy);
        assert!(matches!(rollout.standings(), [Standing::Failed { .. }]), "{left_out}");
    }
}

#[test]
fn rule_3_a_target_that_failed_before_any_step_began_there_gets_none() {
    let stages: [&[_]; 3] = [
        &[("x", SUCCESS, 9)],
        &[("undo", Condition::Failure, 9)],
        &[("tidy", Condition::Always, 9)],
    ];
    for (budget, expected) in [(1, "x:a x:c; tidy:a tidy:c"), (0, "")] {
        let mut plan = plan(&[3], &stages);
        plan.max_failures = budget;
        let mut rollout = Rollout::new(&plan);
        rollout.fail(1, "packages", "broke".to_owned());
        let mut told = Vec::new();
        loop {
            let starts = rollout.start_next();
            if starts.is_empty() {
                break;
            }
            let name = |job: &JobKey| {
                let step = &plan.stages[job.stage].steps[job.step].name;
                format!("{step}:{}", plan.targets[job.target.unwrap()].name)
            };
            told.push(starts.iter().map(name).collect::<Vec<_>>().join(" "));
            for job in starts {
                rollout.ended(job, Ended::Succeeded);
            }
        }
        assert_eq!(told.join("; "), expected);
        assert!(rollout.is_over());
        assert!(matches!(rollout.standings()[1], Standing::Failed { .. }));
    }
}
