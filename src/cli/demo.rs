//! `baton demo`: the five-project example, for real: five scripts against an embedded agent.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use tokio::task::JoinSet;

use super::failure::{Failure, code};
use super::reach::embed;
use super::screen::write_out;
use super::show;
use super::timeline::{Lane, five_projects_problem};
use crate::client::{Client, Heard};
use crate::config::Directories;
use crate::mutex::MutexName;
use crate::script::{Isolation, Labels};
use crate::snapshot::Snapshot;
use crate::spec::Spec;

/// How often the live picture is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// How many columns the bars have where there is room.
const WIDTH: usize = 60;
/// How many columns stand before a bar.
const NAME_COLUMNS: usize = 16;

/// See five projects share a machine: who bypasses runs together, who does not runs alone
///
/// Five scripts are started in this order: P1 and P2 bypass the machine mutex, P3 does not, P4 and
/// P5 bypass it. P1 and P2 run together, P3 alone after both, P4 and P5 together after P3.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  baton demo
  baton demo --pace 300ms      faster")]
pub(super) struct DemoArgs {
    /// How long each second of the demo takes
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = super::time_limit)]
    pace: Duration,
}

/// Name, whether it bypasses, and how long it runs in tenths of the pace.
const PROJECTS: [(&str, bool, u32); 5] =
    [("P1", true, 20), ("P2", true, 14), ("P3", false, 10), ("P4", true, 12), ("P5", true, 20)];

pub(super) async fn demo(args: DemoArgs, folders: Directories) -> Result<ExitCode, Failure> {
    let (embedded, client) = embed(&folders).await?;
    let drawn = play(&client, args.pace).await;
    embedded.close().await;
    // Its name is this demo's own: nobody else ever wants it.
    std::fs::remove_dir_all(folders.mutex.join(demo_mutex().as_str())).unwrap_or_default();
    let width = width();
    let lanes = drawn?;
    let end = lanes.iter().filter_map(|lane| lane.ended).max().unwrap_or_default();
    let mut text = String::from("\n            ░ waiting  █ running\n");
    for lane in &lanes {
        text += lane.draw(end, end, width).trim_end();
        text.push('\n');
    }
    if let Some(problem) = five_projects_problem(&lanes) {
        write_out(text.as_bytes())?;
        return Err(Failure::new(code::INTERNAL, anyhow::anyhow!("wrong order: {problem}")));
    }
    text += "\nright order: P1 and P2 together, then P3 alone, then P4 and P5 together\n";
    write_out(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the five and follows them to their ends.
async fn play(client: &Client, pace: Duration) -> Result<Vec<Lane>, Failure> {
    let start = Timestamp::now();
    let mut lanes: Vec<Lane> = Vec::new();
    let mut followers = JoinSet::new();
    let (told, mut heard) = tokio::sync::mpsc::channel(PROJECTS.len());
    for (place, (name, bypass, tenths)) in PROJECTS.into_iter().enumerate() {
        let claim = if bypass { "bypass" } else { "exclusive" };
        lanes.push(Lane { name: name.into(), claim: claim.into(), ..Lane::default() });
        let script = client.start(project(name, bypass, pace * tenths / 10)).await?;
        let mut following = client.watch(script.script_id, 0, true);
        let told = told.clone();
        followers.spawn(async move {
            while let Some(heard) = following.next().await? {
                if let Heard::Script(script) = heard {
                    // The receiver lives as long as there are followers.
                    drop(told.send((place, script)).await);
                }
            }
            Ok::<_, crate::client::ClientError>(())
        });
    }
    drop(told);
    let mut picture = Picture::new(&lanes, pace);
    let mut frames = tokio::time::interval(FRAME);
    loop {
        tokio::select! {
            event = heard.recv() => match event {
                Some((at, script)) => picture.tell(&mut lanes[at], &script, start),
                None => break,
            },
            _ = frames.tick() => picture.draw(&lanes, show::between(start, Timestamp::now())),
        }
    }
    picture.clear();
    while let Some(followed) = followers.join_next().await {
        followed.map_err(|error| Failure::new(code::INTERNAL, error))??;
    }
    Ok(lanes)
}

fn project(name: &str, bypass: bool, time: Duration) -> Spec {
    let text = format!("sleep {}", time.as_secs_f64());
    Spec {
        isolation: if bypass { Isolation::Shared { at_most: None } } else { Isolation::Exclusive },
        mutex: demo_mutex(),
        labels: Labels::from([("project".to_owned(), name.to_owned())]),
        ..Spec::of_body(text, "sh")
    }
}

/// A mutex of its own for each demo: it neither waits for real work nor holds it up.
fn demo_mutex() -> MutexName {
    let name = format!("demo-{}", std::process::id());
    name.parse().unwrap_or_else(|_| MutexName::machine())
}

/// The live picture on a terminal, or a line for each change.
struct Picture {
    bars: Vec<ProgressBar>,
    all: MultiProgress,
    whole: Duration,
    width: usize,
}

/// How many columns the bars have on this terminal.
fn width() -> usize {
    let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
    match usize::from(columns) {
        0 => WIDTH,
        columns => WIDTH.min(columns.saturating_sub(NAME_COLUMNS)).max(1),
    }
}

impl Picture {
    fn new(lanes: &[Lane], pace: Duration) -> Self {
        let all = MultiProgress::new();
        let mut bars = Vec::new();
        if io::stderr().is_terminal() {
            for _ in lanes {
                let bar = all.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{msg}") {
                    bar.set_style(style);
                }
                bars.push(bar);
            }
        }
        // A little more than all of them need one after the other group.
        Self { bars, all, whole: pace * 55 / 10, width: width() }
    }

    fn tell(&self, lane: &mut Lane, script: &Snapshot, start: Timestamp) {
        let at = |time| show::between(start, time);
        lane.queued = Some(at(script.queued_at));
        lane.started = script.started_at.map(at);
        lane.ended = script.ended_at.map(at);
        if self.bars.is_empty() {
            let waits: Vec<_> = script.waits.iter().map(crate::snapshot::Wait::reason).collect();
            let text = format!("{} {} {}", lane.name, show::state(script), waits.join("; "));
            super::failure::complain(text.trim_end());
        }
    }

    fn draw(&self, lanes: &[Lane], now: Duration) {
        for (bar, lane) in self.bars.iter().zip(lanes) {
            bar.set_message(lane.draw(now, self.whole.max(now), self.width));
        }
    }

    fn clear(&mut self) {
        for bar in self.bars.drain(..) {
            bar.finish_and_clear();
        }
        // Nothing to be done if the terminal is gone.
        self.all.clear().unwrap_or_default();
    }
}
