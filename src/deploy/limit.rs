//! Pure: numbers and times that files give as texts.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

use crate::spec::MAX_TIME_LIMIT;

/// A number, or a percentage such as `"10%"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub(super) enum AmountText {
    /// So many.
    Number(u32),
    /// So many of a hundred, for example `"10%"`.
    Percent(String),
}

/// How many of a number of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many, however many there are.
    Number(u32),
    /// So many of a hundred; 0 to 100.
    Percent(u8),
}

impl Amount {
    pub(super) fn parse(text: &AmountText) -> Result<Self, String> {
        let text = match text {
            AmountText::Number(number) => return Ok(Self::Number(*number)),
            AmountText::Percent(text) => text,
        };
        let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse().ok());
        number.filter(|percent| *percent <= 100).map(Self::Percent).ok_or_else(|| {
            format!("is {text:?}, but must be a number or a percentage such as \"10%\"")
        })
    }

    /// Of so many targets, rounded down: what may fail.
    pub fn at_most(self, of: u32) -> u32 {
        match self {
            Self::Number(number) => number,
            Self::Percent(percent) => portion(percent, of, 0),
        }
    }

    /// Of so many targets, rounded up and at least one: what goes together.
    pub fn at_least_one(self, of: u32) -> NonZeroU32 {
        let number = match self {
            Self::Number(number) => number,
            Self::Percent(percent) => portion(percent, of, 99),
        };
        NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
    }
}

fn portion(percent: u8, of: u32, rounding: u64) -> u32 {
    let portion = (u64::from(percent) * u64::from(of) + rounding) / 100;
    u32::try_from(portion).unwrap_or(u32::MAX)
}

/// A time such as `90s`, `10m`, `1h30m`, longer than none.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("is {text:?}: {error}; for example 90s, 10m, 1h30m"))?;
    if time.is_zero() {
        return Err("is zero; leave it out for no limit".to_owned());
    }
    if time > MAX_TIME_LIMIT {
        return Err(format!("is {text:?}, more than {} days", days(MAX_TIME_LIMIT)));
    }
    Ok(time)
}

/// How long an agent that is away is waited for, longer than none.
///
/// # Errors
/// When it is none.
pub fn away(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("is {text:?}: {error}; for example 90s, 10m, 1h30m"))?;
    if time.is_zero() {
        return Err("is zero; each restart of an agent would be a failure".to_owned());
    }
    if time > MAX_TIME_LIMIT {
        return Err(format!("is {text:?}, more than {} days", days(MAX_TIME_LIMIT)));
    }
    Ok(time)
}

fn days(time: Duration) -> u64 {
    time.as_secs() / (24 * 60 * 60)
}

/// The shorter one of two limits of which none need be there.
pub(super) fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_a_number_or_a_percentage() {
        let percent = |text: &str| Amount::parse(&AmountText::Percent(text.to_owned()));
        assert_eq!(Amount::parse(&AmountText::Number(3)), Ok(Amount::Number(3)));
        assert_eq!(percent("10%"), Ok(Amount::Percent(10)));
        for bad in ["10", "101%", "-1%", "ten%", "", "%"] {
            percent(bad).unwrap_err();
        }
    }

    #[test]
    fn what_may_fail_is_rounded_down_and_what_goes_together_up() {
        for (percent, of, at_most, at_least_one) in
            [(10, 15, 1, 2), (10, 9, 0, 1), (0, 9, 0, 1), (100, 7, 7, 7), (50, 3, 1, 2)]
        {
            let amount = Amount::Percent(percent);
            assert_eq!(amount.at_most(of), at_most, "{percent}% of {of}");
            assert_eq!(amount.at_least_one(of).get(), at_least_one, "{percent}% of {of}");
        }
        assert_eq!(Amount::Number(0).at_least_one(5).get(), 1);
        assert_eq!(Amount::Percent(100).at_most(u32::MAX), u32::MAX);
    }

    #[test]
    fn a_time_has_a_unit_and_an_end() {
        assert_eq!(time("1m30s"), Ok(Duration::from_secs(90)));
        for bad in ["0s", "soon", "10", "2000d"] {
            time(bad).unwrap_err();
        }
        let second = Duration::from_secs(1);
        assert_eq!(away("1m30s"), Ok(second * 90));
        for bad in ["0s", "soon", "10", "2000d"] {
            away(bad).unwrap_err();
        }
        assert_eq!(shorter(Some(second * 2), Some(second)), Some(second));
        assert_eq!(shorter(None, Some(second)), Some(second));
        assert_eq!(shorter(None, None), None);
    }
}
