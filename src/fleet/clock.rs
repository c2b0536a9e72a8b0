//! The clock of leases: time since the machine was started, also while it was suspended.
//!
//! A lease runs out at the server while this machine sleeps. `std::time::Instant` stands still then, and
//! would take a lease for living that is another's by now.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use crate::filewatch::register;

/// A point in time of this run of this machine; processes may tell each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// The point in time that is now.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        Self(Duration::try_from(now).unwrap_or_default())
    }

    /// So much later.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// How long it is from `earlier` to this; zero when it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Whether it is over.
    pub fn is_over(self) -> bool {
        Self::now() >= self
    }

    /// As microseconds since the machine was started.
    pub fn as_micros(self) -> u64 {
        u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX)
    }

    /// From microseconds since the machine was started.
    pub fn from_micros(micros: u64) -> Self {
        Self(Duration::from_micros(micros))
    }
}

/// What becomes readable at a moment, at once after a suspension that it fell into.
#[derive(Debug)]
pub struct Alarm(OwnedFd);

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Boottime, flags)?))
    }

    /// Sets it; before, it was not due or is not read any more.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set(&self, at: Moment) -> io::Result<()> {
        // Zero would mean never.
        let at = at.0.max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(at).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        timerfd_settime(
            &self.0,
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec { it_interval, it_value },
        )?;
        Ok(())
    }

    /// The descriptor that becomes readable.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.0
    }
}

/// Sleeps until a moment.
///
/// # Cancel safety
/// May be dropped at any time.
pub async fn sleep_until(at: Moment) {
    let alarm = Alarm::new().and_then(|alarm| alarm.set(at).map(|()| alarm));
    if let Ok(alarm) = alarm.and_then(|alarm| register(alarm.0))
        && alarm.readable().await.is_ok()
    {
        return;
    }
    // No descriptor is left: the runtime's clock is the next best.
    tokio::time::sleep(at.since(Moment::now())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_moment_is_slept_to_and_one_that_is_over_is_not() {
        let start = Moment::now();
        sleep_until(start).await;
        let end = start.after(Duration::from_millis(20));
        sleep_until(end).await;
        assert!(end.is_over() && Moment::now().since(start) >= Duration::from_millis(20));
        let told = Moment::from_micros(end.as_micros());
        assert!(told <= end && end.since(told) < Duration::from_micros(1));
    }
}
