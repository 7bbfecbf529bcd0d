//! Times to live in the server's encoding.

use std::time::{Duration, SystemTime};

use crate::error::{Error, ErrorKind, Result};
use crate::store::Ttl;

/// The longest relative time, in seconds: 30 days. The server takes a larger number as a Unix time.
const LONGEST_RELATIVE: u64 = 60 * 60 * 24 * 30;

/// Encodes `ttl` in whole seconds, rounded up; 0 stands for an entry that never expires.
///
/// # Errors
///
/// [`ErrorKind::InvalidTtl`] for a TTL of zero or of more than a hundred years, and for one that ends beyond the
/// server's 32-bit calendar (January 2038).
pub(super) fn expiry(ttl: Ttl) -> Result<u32> {
    let Some(duration) = ttl.duration()? else { return Ok(0) };
    let seconds = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    let encoded = if seconds <= LONGEST_RELATIVE { seconds } else { now().saturating_add(seconds) };
    i32::try_from(encoded).map(i32::cast_unsigned).map_err(|_| {
        let context = format!("a TTL of {seconds} s ends later than memcached can express (January 2038)");
        Error::new(ErrorKind::InvalidTtl, context)
    })
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{expiry, now};
    use crate::error::ErrorKind;
    use crate::store::Ttl;

    fn seconds(duration: Duration) -> u64 {
        u64::from(expiry(Ttl::After(duration)).unwrap())
    }

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(expiry(Ttl::Never).unwrap(), 0);
        assert_eq!(seconds(Duration::from_nanos(1)), 1);
        assert_eq!(seconds(Duration::from_secs(60)), 60);
        assert_eq!(seconds(Duration::from_millis(60_001)), 61);
    }

    #[test]
    fn more_than_thirty_days_are_sent_as_a_unix_time() {
        assert_eq!(seconds(Duration::from_secs(2_592_000)), 2_592_000);
        let date = seconds(Duration::from_secs(2_592_001));
        assert!((0..=2).contains(&(now() + 2_592_001 - date)), "{date}");
    }

    #[test]
    fn zero_and_a_time_after_2038_are_refused() {
        for duration in [Duration::ZERO, Duration::from_secs(1 << 31), Duration::MAX] {
            assert_eq!(expiry(Ttl::After(duration)).unwrap_err().kind(), ErrorKind::InvalidTtl);
        }
    }
}
