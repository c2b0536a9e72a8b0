//! Moments as people write them: a time span from now, or a date with or without a time.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A moment that a span reaches from now on.
pub(super) fn ahead(text: &str) -> Result<Timestamp, String> {
    parse(text, |span| span)
}

/// A moment that lies a span back.
pub(super) fn ago(text: &str) -> Result<Timestamp, String> {
    parse(text, |span| -span)
}

fn parse(text: &str, way: fn(SignedDuration) -> SignedDuration) -> Result<Timestamp, String> {
    if let Ok(span) = humantime::parse_duration(text) {
        let span = SignedDuration::try_from(span).map_err(|error| error.to_string())?;
        return Timestamp::now().checked_add(way(span)).map_err(|error| error.to_string());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let expected = "a time such as 30d or a date such as 2027-01-01 is expected";
    // Without an offset it is the time of this machine.
    let local: DateTime = text.parse().map_err(|_| expected.to_owned())?;
    let zoned = local.to_zoned(TimeZone::system()).map_err(|error| error.to_string())?;
    Ok(zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_span_or_a_date_with_or_without_a_time() {
        let now = Timestamp::now();
        assert!(ahead("30d").unwrap() > now && ago("7d").unwrap() < now);
        assert_eq!(ago("2026-11-20T13:00:00Z"), ahead("2026-11-20T14:00:00+01:00"));
        let local = |text: &str| {
            let local: DateTime = text.parse().unwrap();
            Ok(local.to_zoned(TimeZone::system()).unwrap().timestamp())
        };
        assert_eq!(ago("2026-11-20"), local("2026-11-20T00:00:00"));
        assert_eq!(ago("2026-11-20 14:30"), local("2026-11-20T14:30:00"));
        for bad in ["", "yesterday", "7", "2026-13-01", "-3d", "99999999999999d"] {
            ago(bad).unwrap_err();
        }
    }
}
