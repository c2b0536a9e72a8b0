//! Why nobody knows how a script ended that had a supervisor, as far as the end of that was seen.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use signal_hook::low_level::signal_name;

use crate::supervisor::Unwritten;

/// In words. `end` is how the supervisor ended, if this run of the agent was its parent.
pub(super) fn reason(end: Option<ExitStatus>) -> String {
    let Some(end) = end else {
        return "its supervisor was killed, or failed: nobody saw its end".to_owned();
    };
    if let Some(signal) = end.signal() {
        let name = signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned);
        return format!("its supervisor was killed by {name}");
    }
    match end.code().unwrap_or_default() {
        0 => "its supervisor ended without an outcome".to_owned(),
        code => match Unwritten::of(code) {
            Some(why) => format!("its outcome could not be written: {why}"),
            None => format!("its supervisor failed with exit status {code}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_of_a_supervisor_is_told_from_the_others() {
        let exited = |code: u8| Some(ExitStatus::from_raw(i32::from(code) << 8));
        let reasons = [
            (None, "its supervisor was killed, or failed: nobody saw its end"),
            (Some(ExitStatus::from_raw(9)), "its supervisor was killed by SIGKILL"),
            (Some(ExitStatus::from_raw(40)), "its supervisor was killed by signal 40"),
            (exited(0), "its supervisor ended without an outcome"),
            (exited(1), "its supervisor failed with exit status 1"),
            (exited(101), "its supervisor failed with exit status 101"),
            (
                exited(Unwritten::NoRoom.status()),
                "its outcome could not be written: the disk was full",
            ),
            (
                exited(Unwritten::ReadOnly.status()),
                "its outcome could not be written: the file system was read-only",
            ),
            (
                exited(Unwritten::Refused.status()),
                "its outcome could not be written: the disk refused it",
            ),
        ];
        for (end, expected) in reasons {
            assert_eq!(reason(end), expected);
        }
    }
}
