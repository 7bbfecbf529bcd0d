//! How long a value serves.

use std::time::Duration;

use crate::store::Ttl;

/// How long a value serves: a [`Duration`] will do wherever one is asked for.
///
/// ```
/// use prefork_cache::{Expiry, Ttl};
/// use std::time::Duration;
///
/// assert_eq!(Expiry::from(Duration::from_secs(60)), Expiry::after(Duration::from_secs(60)));
/// assert_eq!(Expiry::from(Ttl::Never), Expiry::never());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Expiry {
    ttl: Ttl,
}

impl Expiry {
    /// For this long, counted from the moment of storing. Zero is refused by the operation that uses it, with
    /// [`ErrorKind::InvalidTtl`](crate::ErrorKind::InvalidTtl).
    pub const fn after(duration: Duration) -> Expiry {
        Expiry { ttl: Ttl::After(duration) }
    }

    /// Until it is deleted or evicted.
    pub const fn never() -> Expiry {
        Expiry { ttl: Ttl::Never }
    }

    pub(crate) fn ttl(self) -> Ttl {
        self.ttl
    }
}

impl From<Duration> for Expiry {
    fn from(duration: Duration) -> Expiry {
        Expiry::after(duration)
    }
}

impl From<Ttl> for Expiry {
    fn from(ttl: Ttl) -> Expiry {
        Expiry { ttl }
    }
}
