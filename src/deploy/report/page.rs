//! Pure: stories become a page.

use std::fmt::{self, Write as _};
use std::time::Duration;

use jiff::Timestamp;

use super::{Absence, Job, Story, Target};
use crate::deploy::event::{JobResult, TargetVerdict, Verdict};
use crate::script::Stream;
use crate::snapshot::clock;

/// The picture's own units, in pixels at 1:1.
const NAMES: f64 = 150.0;
const WIDTH: f64 = 1000.0;
const LANE: f64 = 22.0;
const GAP: f64 = 8.0;
const HEAD: f64 = 24.0;
/// About how many marks the time axis has.
const TICKS: f64 = 8.0;
/// The narrowest bar that has room for its name.
const LABELLED: f64 = 40.0;
/// How wide a letter is, about.
const LETTER: f64 = 6.6;

const STYLE: &str = "\
:root{--fg:#1b1f24;--bg:#fff;--soft:#6b7280;--line:#d9dde3;--card:#f6f7f9;--ok:#2f7d4f;--bad:#c0392b;\
--run:#2d6cdf;--wait:#b7bec9;--off:#8a8f98}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e8eb;--bg:#16191d;--soft:#9aa3af;--line:#333a43;\
--card:#1f242a;--ok:#3f9e68;--bad:#e05d4f;--run:#5b8def;--wait:#5a626d;--off:#757c86}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);margin:2rem auto;\
max-width:76rem;padding:0 1rem}h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}\
p{margin:.2rem 0;color:var(--soft)}table{border-collapse:collapse}td,th{text-align:left;\
padding:.2rem 1.2rem .2rem 0;vertical-align:top}th{color:var(--soft);font-weight:normal}\
td.n{font-variant-numeric:tabular-nums}svg{width:100%;height:auto;display:block}\
svg text{font:12px system-ui,sans-serif;fill:var(--fg)}svg .tick{fill:var(--soft)}\
svg .grid{stroke:var(--line)}svg .on{fill:#fff;pointer-events:none}.wait{fill:url(#waits)}\
.succeeded{fill:var(--ok)}.failed{fill:var(--bad)}.cancelled,.skipped{fill:var(--off)}\
.running{fill:var(--run)}.away{fill:var(--bg);opacity:.7}b.succeeded{color:var(--ok)}b.failed{color:var(--bad)}\
details{background:var(--card);border-radius:6px;margin:.4rem 0;padding:.4rem .8rem}\
details details{background:var(--bg);padding:.2rem .6rem}summary{cursor:pointer}\
pre{overflow-x:auto;margin:.4rem 0;font:13px/1.4 ui-monospace,monospace}.err{color:var(--bad)}\
.key span{display:inline-block;width:.9rem;height:.9rem;border-radius:3px;vertical-align:-.1rem;\
margin:0 .3rem 0 1rem}";

/// Text that is no markup.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                // Colours and cursors of terminals.
                c if c.is_control() && c != '\t' => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

pub(super) fn page(runs: &[Story]) -> String {
    let mut html = String::new();
    // Writing into a String can't fail.
    write_page(&mut html, runs).unwrap_or_default();
    html
}

fn write_page(html: &mut String, runs: &[Story]) -> fmt::Result {
    let titles: Vec<&str> = runs.iter().map(|run| run.title.as_str()).collect();
    let title = titles.join(", ");
    let title = Text(&title);
    write!(
        html,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    )?;
    let Some(span) = Span::of(runs) else {
        return html.write_str("<p>nothing happened</p></body></html>\n");
    };
    write_runs(html, runs)?;
    html.write_str("<h2>When</h2>\n")?;
    write_chart(html, runs, span)?;
    html.write_str(
        "<p class=\"key\"><span style=\"background:var(--wait)\"></span>waits\
         <span style=\"background:var(--ok)\"></span>succeeded\
         <span style=\"background:var(--bad)\"></span>failed\
         <span style=\"background:var(--off)\"></span>cancelled or skipped\
         <span style=\"background:var(--card)\"></span>the agent was away</p>\n<h2>Logs</h2>\n",
    )?;
    for (number, run) in runs.iter().enumerate() {
        for target in &run.targets {
            write_target(html, number, run, target, runs.len() > 1)?;
        }
    }
    html.write_str("</body></html>\n")
}

/// From the first moment to the last.
#[derive(Clone, Copy)]
struct Span {
    from: Timestamp,
    to: Timestamp,
}

impl Span {
    fn of(runs: &[Story]) -> Option<Self> {
        let from = runs.iter().map(|run| run.began).min()?;
        let ends = runs.iter().map(|run| {
            let jobs = run.targets.iter().flat_map(|target| &target.jobs);
            let last = jobs.map(|job| job.ended.unwrap_or(job.queued)).max();
            run.ended.or(last).unwrap_or(run.began)
        });
        Some(Self { from, to: ends.max()? })
    }

    fn seconds(self) -> f64 {
        between(self.from, self.to).as_secs_f64().max(0.001)
    }

    fn x(self, time: Timestamp) -> f64 {
        let part = between(self.from, time).as_secs_f64() / self.seconds();
        NAMES + part.min(1.0) * (WIDTH - NAMES)
    }
}

impl Absence {
    fn in_words(&self) -> String {
        let since = clock(self.since);
        let time = self.until.map(|until| format!(" for {}", long(between(self.since, until))));
        format!("away since {since}{}: {}", time.unwrap_or_default(), self.why)
    }
}

fn between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// As people say it.
fn long(time: Duration) -> String {
    if time < Duration::from_secs(10) && time.subsec_nanos() > 0 {
        return format!("{:.1}s", time.as_secs_f64());
    }
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

fn write_runs(html: &mut String, runs: &[Story]) -> fmt::Result {
    html.write_str(
        "<table><tr><th>deployment</th><th>began</th><th>waited for its turn</th><th>took</th>\
         <th>ended</th></tr>\n",
    )?;
    for run in runs {
        let (class, word) = match run.verdict {
            Some(Verdict::Succeeded) => ("succeeded", "succeeded"),
            Some(Verdict::Partly) => ("failed", "succeeded in part"),
            Some(Verdict::Failed) => ("failed", "failed"),
            Some(Verdict::Cancelled) => ("failed", "cancelled"),
            None => ("", "not over"),
        };
        let waited = match (&run.turn, run.has_turn) {
            (Some((since, reason)), Some(had)) => {
                format!("{}, for {reason}", long(between(*since, had)))
            }
            _ => String::new(),
        };
        let took = run.ended.map(|ended| long(between(run.began, ended))).unwrap_or_default();
        let why = run.ending.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        writeln!(
            html,
            "<tr><td>{}<p>run {}</p></td><td class=\"n\">{}</td><td>{}</td><td class=\"n\">{took}</td>\
             <td><b class=\"{class}\">{word}</b>{}</td></tr>",
            Text(&run.title),
            Text(&run.run),
            clock(run.began),
            Text(&waited),
            Text(&why),
        )?;
    }
    html.write_str("</table>\n")
}

/// A row of the picture: what happened on one target, of all deployments.
struct Row<'a> {
    name: &'a str,
    jobs: Vec<(usize, &'a Story, &'a Job)>,
    lanes: Vec<usize>,
    height: usize,
}

impl<'a> Row<'a> {
    /// All targets, in the order in which they are named first.
    fn all(runs: &'a [Story], span: Span) -> Vec<Self> {
        let mut rows: Vec<Self> = Vec::new();
        for (number, run) in runs.iter().enumerate() {
            for target in &run.targets {
                let known = rows.iter().position(|row| row.name == target.name);
                let place = known.unwrap_or_else(|| {
                    let (jobs, lanes) = (Vec::new(), Vec::new());
                    rows.push(Self { name: &target.name, jobs, lanes, height: 1 });
                    rows.len() - 1
                });
                rows[place].jobs.extend(target.jobs.iter().map(|job| (number, run, job)));
            }
        }
        for row in &mut rows {
            row.arrange(span);
        }
        rows
    }

    /// What overlaps gets lanes of its own.
    fn arrange(&mut self, span: Span) {
        self.jobs.sort_by_key(|(_, _, job)| job.queued);
        let mut free_at: Vec<Timestamp> = Vec::new();
        for (_, _, job) in &self.jobs {
            let lane = free_at.iter().position(|free| *free <= job.queued).unwrap_or_else(|| {
                free_at.push(job.queued);
                free_at.len() - 1
            });
            free_at[lane] = job.ended.unwrap_or(span.to);
            self.lanes.push(lane);
        }
        self.height = free_at.len().max(1);
    }
}

#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "a picture's coordinates")]
fn write_chart(html: &mut String, runs: &[Story], span: Span) -> fmt::Result {
    let rows = Row::all(runs, span);
    let height: f64 = rows.iter().map(|row| row.height as f64 * LANE + GAP).sum();
    let bottom = HEAD + height;
    writeln!(
        html,
        "<svg viewBox=\"0 0 {WIDTH} {bottom}\" role=\"img\" aria-label=\"what ran when on which target\">\
         <defs><pattern id=\"waits\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"var(--wait)\" \
         opacity=\".35\"/><rect width=\"3\" height=\"6\" fill=\"var(--wait)\"/></pattern></defs>"
    )?;
    let step = tick(span.seconds());
    let mut at = 0.0;
    while at <= span.seconds() {
        let x = NAMES + at / span.seconds() * (WIDTH - NAMES);
        let label = long(Duration::from_secs_f64(at));
        let anchor = if x > WIDTH - 30.0 { "end" } else { "start" };
        writeln!(
            html,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{HEAD}\" y2=\"{bottom}\"/>\
             <text class=\"tick\" x=\"{x:.1}\" y=\"14\" text-anchor=\"{anchor}\">{label}</text>"
        )?;
        at += step;
    }
    let mut top = HEAD;
    for row in &rows {
        let name = crate::text::shorten(row.name, 20);
        writeln!(
            html,
            "<text x=\"0\" y=\"{}\">{}<title>{}</title></text>",
            top + 15.0,
            Text(&name),
            Text(row.name)
        )?;
        for ((number, run, job), lane) in row.jobs.iter().zip(&row.lanes) {
            let y = top + *lane as f64 * LANE;
            write_bars(
                html,
                span,
                y,
                &Bar { number: *number, run, target: row.name, job },
                runs.len(),
            )?;
        }
        top += row.height as f64 * LANE + GAP;
    }
    html.write_str("</svg>\n")
}

/// The time between two marks: 1, 2 or 5 of a power of ten, in seconds.
fn tick(seconds: f64) -> f64 {
    let rough = (seconds / TICKS).max(0.001);
    let power = 10_f64.powf(rough.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors.iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough)
}

struct Bar<'a> {
    number: usize,
    run: &'a Story,
    target: &'a str,
    job: &'a Job,
}

/// The wait and the run of a step, apart.
fn write_bars(html: &mut String, span: Span, y: f64, bar: &Bar<'_>, runs: usize) -> fmt::Result {
    let Bar { number, run, target, job } = bar;
    let end = job.ended.unwrap_or(span.to);
    let started = job.started.unwrap_or(end);
    let (left, middle, right) = (span.x(job.queued), span.x(started), span.x(end));
    let height = LANE - 4.0;
    let what = format!("{target}: {}", caption(run, job, runs));
    let anchor = anchor(*number, target, job);
    write!(html, "<a href=\"#{}\">", Text(&anchor))?;
    if middle - left > 0.5 {
        let waited = long(between(job.queued, started));
        let whom = if job.waited_for.is_empty() { "" } else { ": " };
        write!(
            html,
            "<rect class=\"wait\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height}\" rx=\"2\">\
             <title>{} waited {waited}{whom}{}</title></rect>",
            middle - left,
            Text(&what),
            Text(&job.waited_for),
        )?;
    }
    let class = match job.result {
        Some(JobResult::Succeeded) => "succeeded",
        Some(JobResult::Failed) => "failed",
        Some(JobResult::Cancelled) => "cancelled",
        Some(JobResult::Skipped) => "skipped",
        None => "running",
    };
    let width = (right - middle).max(1.5);
    let ran = long(between(started, end));
    let how = if job.how.is_empty() { String::new() } else { format!(": {}", job.how) };
    write!(
        html,
        "<rect class=\"{class}\" x=\"{middle:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" \
         rx=\"2\"><title>{} ran {ran}{}</title></rect>",
        Text(&what),
        Text(&how),
    )?;
    for absence in &job.absences {
        write_absence(html, span, y, &what, absence)?;
    }
    if width > LABELLED {
        let letters = letters(width);
        let label = crate::text::shorten(&caption(run, job, runs), letters);
        let (x, y) = (middle + 4.0, y + 13.0);
        write!(html, "<text class=\"on\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", Text(&label))?;
    }
    html.write_str("</a>\n")
}

/// The time in which the agent was away, across the step's bar.
fn write_absence(
    html: &mut String,
    span: Span,
    y: f64,
    what: &str,
    absence: &Absence,
) -> fmt::Result {
    let (left, right) = (span.x(absence.since), span.x(absence.until.unwrap_or(span.to)));
    let (y, width, height) = (y + 3.0, (right - left).max(1.5), LANE - 10.0);
    write!(
        html,
        "<rect class=\"away\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\">\
         <title>{}: the agent was {}</title></rect>",
        Text(what),
        Text(&absence.in_words()),
    )
}

/// How many letters a bar has room for.
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a small positive number"
)]
fn letters(width: f64) -> usize {
    ((width - 8.0) / LETTER) as usize
}

fn caption(run: &Story, job: &Job, runs: usize) -> String {
    let attempt =
        if job.attempt > 1 { format!(" (attempt {})", job.attempt) } else { String::new() };
    if runs > 1 {
        format!("{}: {}{attempt}", run.title, job.step)
    } else {
        format!("{}{attempt}", job.step)
    }
}

/// A name within the page.
fn anchor(number: usize, target: &str, job: &Job) -> String {
    let text = format!("{number}-{target}-{}-{}", job.step, job.attempt);
    text.replace(|c: char| !c.is_alphanumeric() && c != '-' && c != '.', "_")
}

fn write_target(
    html: &mut String,
    number: usize,
    run: &Story,
    target: &Target,
    is_one_of_many: bool,
) -> fmt::Result {
    let (class, word) = match target.result {
        Some(TargetVerdict::Succeeded) => ("succeeded", "succeeded"),
        Some(TargetVerdict::Failed) => ("failed", "failed"),
        Some(TargetVerdict::LeftOut) => ("", "left out"),
        Some(TargetVerdict::DoneBefore) => ("", "done before"),
        Some(TargetVerdict::Unfinished) => ("failed", "unfinished"),
        None => ("", "not over"),
    };
    let of = if is_one_of_many { format!(" ({})", run.title) } else { String::new() };
    let how = if target.how.is_empty() { String::new() } else { format!(": {}", target.how) };
    let open = if class == "failed" { " open" } else { "" };
    writeln!(
        html,
        "<details{open}><summary>{}{} <b class=\"{class}\">{word}</b>{}</summary>",
        Text(&target.name),
        Text(&of),
        Text(&how)
    )?;
    for package in &target.packages {
        let took = package.ended.map(|ended| long(between(package.began, ended)));
        let class = if package.is_failed { "failed" } else { "" };
        writeln!(
            html,
            "<p>package {} <b class=\"{class}\">{}</b> {}</p>",
            Text(&package.name),
            Text(&package.how),
            took.unwrap_or_default()
        )?;
    }
    for job in &target.jobs {
        let took = job.started.zip(job.ended).map(|(started, ended)| long(between(started, ended)));
        let open = if job.result == Some(JobResult::Failed) { " open" } else { "" };
        writeln!(
            html,
            "<details id=\"{}\"{open}><summary>{} {} {}</summary><pre>",
            Text(&anchor(number, &target.name, job)),
            Text(&caption(run, job, 1)),
            took.unwrap_or_default(),
            Text(&job.how)
        )?;
        for absence in &job.absences {
            writeln!(
                html,
                "<span class=\"err\">[the agent was {}]</span>",
                Text(&absence.in_words())
            )?;
        }
        if job.dropped_lines > 0 {
            writeln!(html, "… {} lines before are left out …", job.dropped_lines)?;
        }
        for (stream, line) in &job.lines {
            match stream {
                Stream::Stdout => writeln!(html, "{}", Text(line))?,
                Stream::Stderr => writeln!(html, "<span class=\"err\">{}</span>", Text(line))?,
            }
        }
        html.write_str("</pre></details>\n")?;
    }
    html.write_str("</details>\n")
}
