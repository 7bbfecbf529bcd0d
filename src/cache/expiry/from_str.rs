//! Expiries as strings: `60s, refresh_ahead=10s, stale_for=10m, jitter=0.1`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{End, Expiry, Ttl};
use crate::error::{Error, ErrorKind};

/// Units in nanoseconds, the smallest first.
const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Parses a fresh time (`500ms`, `60s` or `60`, `5m`, `1h`, `30d`, `never`, `default`, or `at=` with the time since
/// 1970), optionally followed by `refresh_ahead=`, `stale_for=` and `jitter=`, each after a comma.
///
/// ```
/// use prefork_cache::Expiry;
/// use std::time::Duration;
///
/// let minute = Duration::from_secs(60);
/// let expiry = Expiry::after(minute).stale_for(60 * minute).jitter(0.1);
/// assert_eq!("1m, stale_for=1h, jitter=0.1".parse::<Expiry>()?, expiry);
/// assert_eq!(expiry.to_string().parse::<Expiry>()?, expiry);
/// assert!("1m, refresh_ahead=2m".parse::<Expiry>().is_err());
/// # Ok::<(), prefork_cache::Error>(())
/// ```
impl FromStr for Expiry {
    type Err = Error;

    fn from_str(text: &str) -> Result<Expiry, Error> {
        let mut parts = text.split(',').map(str::trim);
        let fresh = parts.next().unwrap_or_default();
        let mut expiry = match (fresh, fresh.strip_prefix("at=")) {
            ("never", _) => Expiry::NEVER,
            ("default", _) => Expiry::DEFAULT,
            (_, Some(since)) => Expiry::at(SystemTime::UNIX_EPOCH + duration(since)?),
            (fresh, None) => Expiry::after(Ttl::After(duration(fresh)?).duration()?.unwrap_or_default()),
        };
        for part in parts {
            let (name, setting) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "refresh_ahead" => expiry.refresh_ahead = duration(setting)?,
                "stale_for" => expiry.stale_for = duration(setting)?,
                "jitter" => {
                    expiry.jitter = setting.parse().map_err(|_| refused(format!("{setting:?} is not a number")))?
                }
                _ => return Err(refused(format!("{part:?} is not refresh_ahead=, stale_for= or jitter="))),
            }
        }
        expiry.validated()
    }
}

impl Expiry {
    /// Returns the errors for which the setters panic.
    fn validated(self) -> Result<Expiry, Error> {
        if let End::After(fresh) = self.end
            && self.refresh_ahead >= fresh
        {
            return Err(refused("refresh_ahead is not shorter than the time that the value is fresh".to_owned()));
        }
        if self.stale_for > Ttl::LONGEST {
            return Err(refused("stale_for is more than a hundred years".to_owned()));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(refused("jitter is not between 0 and 1".to_owned()));
        }
        Ok(self)
    }
}

/// Formats the expiry as [`FromStr`] parses it.
impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            End::Never => f.write_str("never")?,
            End::Default => f.write_str("default")?,
            End::After(duration) => write_duration(f, duration)?,
            End::At(time) => {
                f.write_str("at=")?;
                write_duration(f, time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())?;
            }
        }
        for (name, duration) in [("refresh_ahead", self.refresh_ahead), ("stale_for", self.stale_for)] {
            if !duration.is_zero() {
                write!(f, ", {name}=")?;
                write_duration(f, duration)?;
            }
        }
        if self.jitter > 0.0 {
            write!(f, ", jitter={}", self.jitter)?;
        }
        Ok(())
    }
}

/// Writes the duration in the largest unit, up to seconds, that divides it without a remainder.
fn write_duration(f: &mut fmt::Formatter<'_>, duration: Duration) -> fmt::Result {
    let nanoseconds = duration.as_nanos();
    let up_to_seconds = UNITS[..4].iter().rev();
    let (unit, length) =
        up_to_seconds.clone().find(|(_, length)| nanoseconds.is_multiple_of(u128::from(*length))).unwrap_or(&UNITS[0]);
    write!(f, "{}{unit}", nanoseconds / u128::from(*length))
}

fn duration(text: &str) -> Result<Duration, Error> {
    let digits = text.len() - text.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = if unit.is_empty() { "s" } else { unit };
    let length = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length);
    let nanoseconds =
        number.parse::<u64>().ok().zip(length).map(|(number, length)| u128::from(number) * u128::from(length));
    let duration = nanoseconds.and_then(|all| {
        let (seconds, rest) = (all / 1_000_000_000, all % 1_000_000_000);
        Some(Duration::new(u64::try_from(seconds).ok()?, rest as u32))
    });
    // The same limit serves for `at=`: a time that the clock can represent.
    let in_range = duration.filter(|duration| *duration <= Ttl::LONGEST.saturating_mul(10));
    in_range
        .ok_or_else(|| refused(format!("{text:?} is not a duration such as 500ms, 60s, 5m, 1h, 30d or 60 (seconds)")))
}

fn refused(why: String) -> Error {
    Error::new(ErrorKind::InvalidTtl, format!("an expiry: {why}"))
}

impl Serialize for Expiry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Deserializes a string, or a number of seconds.
impl<'de> Deserialize<'de> for Expiry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Expiry, D::Error> {
        struct ExpiryVisitor;
        impl Visitor<'_> for ExpiryVisitor {
            type Value = Expiry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an expiry such as \"60s, stale_for=10m\", or a number of seconds")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Expiry, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Expiry, E> {
                self.visit_str(&seconds.to_string())
            }

            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Expiry, E> {
                self.visit_str(&seconds.to_string())
            }
        }
        deserializer.deserialize_any(ExpiryVisitor)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::Expiry;

    #[test]
    fn display_and_from_str_round_trip() {
        let second = Duration::from_secs(1);
        let expiries = [
            (Expiry::NEVER, "never"),
            (Expiry::DEFAULT, "default"),
            (Expiry::after(second), "1s"),
            (Expiry::after(Duration::from_micros(1_500)), "1500us"),
            (
                Expiry::after(90 * second).refresh_ahead(second).stale_for(second / 2).jitter(0.25),
                "90s, refresh_ahead=1s, stale_for=500ms, jitter=0.25",
            ),
            (Expiry::at(SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_128_367_001)), "at=1764128367001ms"),
        ];
        for (expiry, text) in expiries {
            assert_eq!(expiry.to_string(), text);
            assert_eq!(text.parse::<Expiry>().unwrap(), expiry);
            let json = serde_json::to_string(&expiry).unwrap();
            assert_eq!(serde_json::from_str::<Expiry>(&json).unwrap(), expiry);
        }
        assert_eq!(serde_json::from_str::<Expiry>("60").unwrap(), Expiry::after(60 * second));
        assert_eq!("1h,jitter=1".parse::<Expiry>().unwrap(), Expiry::after(3_600 * second).jitter(1.0));
        assert_eq!("30d".parse::<Expiry>().unwrap(), Expiry::after(30 * 86_400 * second));
    }

    #[test]
    fn an_invalid_expiry_is_refused() {
        let refusals = [
            ("", "an expiry: \"\" is not a duration such as 500ms, 60s, 5m, 1h, 30d or 60 (seconds)"),
            ("soon", "an expiry: \"soon\" is not a duration such as 500ms, 60s, 5m, 1h, 30d or 60 (seconds)"),
            ("0", "a TTL of zero: an entry that does not expire has Ttl::Never, or Expiry::NEVER"),
            ("60s, refresh_ahead=1m", "an expiry: refresh_ahead is not shorter than the time that the value is fresh"),
            ("60s, stale_for=40000d", "an expiry: stale_for is more than a hundred years"),
            ("60s, jitter=NaN", "an expiry: jitter is not between 0 and 1"),
            ("60s, jitter=a", "an expiry: \"a\" is not a number"),
            ("60s, stale", "an expiry: \"stale\" is not refresh_ahead=, stale_for= or jitter="),
        ];
        for (text, refusal) in refusals {
            assert_eq!(text.parse::<Expiry>().unwrap_err().to_string(), refusal);
        }
        assert!(serde_json::from_str::<Expiry>("-1").is_err() && serde_json::from_str::<Expiry>("[]").is_err());
    }
}
