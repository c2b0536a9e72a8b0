//! Events in, a page out.

use super::super::event::{State, TargetResult, What};
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn began(project: &str) -> What {
    What::Began {
        project: project.to_owned(),
        environment: "prod".to_owned(),
        tenant: None,
        release: Some("1.2".to_owned()),
        targets: vec!["web-1".to_owned()],
        steps: vec!["Migrate".to_owned()],
    }
}

fn job(state: State) -> What {
    let (target, step) = ("web-1".to_owned(), "Migrate".to_owned());
    What::Job { target, step, number: 1, attempt: 1, state }
}

fn ended(result: JobResult, how: &str) -> State {
    let (queued_at, started_at, ended_at) = (Some(at(0)), Some(at(5)), Some(at(9)));
    State::Ended { result, how: how.to_owned(), queued_at, started_at, ended_at }
}

fn report(events: Vec<(i64, What)>) -> String {
    let mut report = Report::default();
    for (second, what) in events {
        report.hear(&Event { at: at(second), run: "r1".to_owned(), what });
    }
    report.html()
}

#[test]
fn a_wait_and_a_run_are_drawn_apart_and_text_is_no_markup() {
    let line = "<script>alert(1)</script> & \u{1b}[31mred".to_owned();
    let (target, step) = ("web-1".to_owned(), "Migrate".to_owned());
    let html = report(vec![
        (0, began("<shop>")),
        (
            0,
            job(State::Waits {
                position: 1,
                reason: "`machine` is held by \"x\"".to_owned(),
                behind: String::new(),
            }),
        ),
        (5, job(State::Runs)),
        (6, What::Output { target, step, stream: Stream::Stderr, line }),
        (9, job(ended(JobResult::Failed, "exited with 3"))),
        (
            10,
            What::Over {
                result: Verdict::Failed,
                targets: vec![TargetResult {
                    target: "web-1".to_owned(),
                    result: TargetVerdict::Failed,
                    how: "Migrate: exited with 3".to_owned(),
                }],
            },
        ),
    ]);
    assert!(html.contains("<title>&lt;shop&gt; 1.2 to prod</title>"), "{html}");
    assert!(
        html.contains("web-1: Migrate waited 5s: `machine` is held by &quot;x&quot;"),
        "{html}"
    );
    assert!(html.contains("web-1: Migrate ran 4s: exited with 3"), "{html}");
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; \u{fffd}[31mred"), "{html}");
    assert!(!html.contains("<script"), "{html}");
    // The wait takes half of the ten seconds, the run four tenths.
    assert!(html.contains("class=\"wait\" x=\"150.0\" y=\"24.0\" width=\"425.0\""), "{html}");
    assert!(html.contains("class=\"failed\" x=\"575.0\" y=\"24.0\" width=\"340.0\""), "{html}");
}

#[test]
fn what_overlaps_on_a_target_has_lanes_of_its_own() {
    let mut report = Report::default();
    for number in 0..2 {
        let name = format!("p{number}");
        let run = format!("r{number}");
        report.hear(&Event { at: at(0), run: run.clone(), what: began(&name) });
        report.hear(&Event { at: at(1), run, what: job(State::Runs) });
    }
    for number in 0..2 {
        let what = job(ended(JobResult::Succeeded, ""));
        report.hear(&Event { at: at(9), run: format!("r{number}"), what });
    }
    let html = report.html();
    assert!(html.contains("y=\"24.0\"") && html.contains("y=\"46.0\""), "{html}");
    assert!(html.contains("p0 1.2 to prod: Migrate ran"), "{html}");
}

#[test]
fn a_long_log_keeps_its_end_and_says_so() {
    let mut events = vec![(0, began("shop")), (0, job(State::Runs))];
    for number in 0..MAX_LINES + 3 {
        let (target, step) = ("web-1".to_owned(), "Migrate".to_owned());
        let line = format!("line {number}");
        events.push((1, What::Output { target, step, stream: Stream::Stdout, line }));
    }
    let html = report(events);
    assert!(html.contains("… 3 lines before are left out …\nline 3\n"));
}

#[test]
fn without_an_event_the_page_says_so() {
    assert!(Report::default().html().contains("nothing happened"));
}
