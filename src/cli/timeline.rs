//! Pure: drawing who waited and who ran, as lines of text.

use std::time::Duration;

/// One line: a script and its times since the start of the picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lane {
    /// What it is called.
    pub(super) name: String,
    /// How it claims the mutex.
    pub(super) claim: String,
    /// When it was queued.
    pub(super) queued: Option<Duration>,
    /// When it started.
    pub(super) started: Option<Duration>,
    /// When it ended.
    pub(super) ended: Option<Duration>,
}

impl Lane {
    /// Whether both ran at the same time.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (Some(start), Some(end)) = (self.started, self.ended) else { return false };
        let (Some(other_start), Some(other_end)) = (other.started, other.ended) else {
            return false;
        };
        start < other_end && other_start < end
    }

    /// Whether it ended before the other started.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        self.ended.zip(other.started).is_some_and(|(end, start)| end <= start)
    }

    /// `░` while it waits, `█` while it runs, in `width` columns that stand for `whole`.
    pub(super) fn draw(&self, now: Duration, whole: Duration, width: usize) -> String {
        let column = |time: Duration| {
            let part = time.as_secs_f64() / whole.as_secs_f64().max(f64::MIN_POSITIVE);
            // Rounded down by counting: a float has no checked conversion.
            (1..=width).take_while(|column| columns(*column, width) <= part).count()
        };
        let queued = self.queued.map_or(width, column);
        let started = self.started.map_or(width, column);
        let end = column(self.ended.unwrap_or(now));
        let mut bar = String::new();
        for at in 0..width {
            let running = started <= at && (at < end || (at == started && self.started.is_some()));
            let waiting = queued <= at && at < started && at < end;
            bar.push(match (running, waiting) {
                (true, _) => '█',
                (false, true) => '░',
                (false, false) => ' ',
            });
        }
        format!("{:<3} {:<10} {bar}", self.name, self.claim)
    }
}

/// Which part of the width a column ends at.
fn columns(column: usize, width: usize) -> f64 {
    let number = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    number(column) / number(width)
}

/// What is wrong with the order of the five projects; `None`: nothing.
pub(super) fn five_projects_problem(lanes: &[Lane]) -> Option<String> {
    let [p1, p2, p3, p4, p5] = lanes else {
        return Some("there are not five".to_owned());
    };
    let wrong = [
        (!p1.overlaps(p2), "P1 and P2 did not run together"),
        (!p1.is_before(p3), "P3 did not wait for P1"),
        (!p2.is_before(p3), "P3 did not wait for P2"),
        (!p3.is_before(p4), "P4 did not wait for P3"),
        (!p3.is_before(p5), "P5 did not wait for P3"),
        (!p4.overlaps(p5), "P4 and P5 did not run together"),
    ];
    wrong.into_iter().find_map(|(wrong, text)| wrong.then(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(started: u64, ended: u64) -> Lane {
        let at = |s| Some(Duration::from_secs(s));
        Lane { queued: at(0), started: at(started), ended: at(ended), ..Lane::default() }
    }

    #[test]
    fn waiting_and_running_are_drawn_apart() {
        let lane = Lane { name: "P3".to_owned(), claim: "exclusive".to_owned(), ..lane(4, 6) };
        let whole = Duration::from_secs(10);
        assert_eq!(lane.draw(whole, whole, 10), "P3  exclusive  ░░░░██    ");
        let half = Duration::from_secs(2);
        let waiting = Lane { started: None, ended: None, ..lane };
        assert_eq!(waiting.draw(half, whole, 10), "P3  exclusive  ░░        ");
    }

    #[test]
    fn the_right_order_is_told_from_wrong_ones() {
        let right = [lane(0, 3), lane(0, 2), lane(3, 5), lane(5, 7), lane(5, 8)];
        assert_eq!(five_projects_problem(&right), None);
        let mut wrong = right.clone();
        wrong[2] = lane(2, 5);
        assert_eq!(five_projects_problem(&wrong).as_deref(), Some("P3 did not wait for P1"));
        wrong = right.clone();
        wrong[4] = lane(8, 9);
        assert!(five_projects_problem(&wrong).is_some());
    }
}
