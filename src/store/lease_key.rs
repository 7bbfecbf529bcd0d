//! The key of a lease, which stands beside the entry that is loaded under it.

/// What is put behind a key, with a colon, to make that of its lease.
pub(crate) const LEASE: &str = "prefork-lease";

/// What is put behind a key, with a colon, to make that of a lock. Under its lease nothing is loaded.
pub(crate) const LOCK: &str = "prefork-lock";

/// The key whose lease is the lock of a key.
pub(crate) fn lock_key(key: &str) -> String {
    format!("{key}:{LOCK}")
}

/// The key of the lease of a key, both as the store sees them.
pub(crate) fn lease_key(key: &str) -> String {
    format!("{key}:{LEASE}")
}

/// The key of the mark of a [settle](super::Settle) that is under way, where a server cannot store one entry on the
/// condition of another: that of the lease of a lease, which nobody takes.
#[cfg(any(feature = "memcached", test))]
pub(crate) fn settling_key(key: &str) -> String {
    format!("{key}:{LEASE}:{LEASE}")
}

/// The key whose lease, or whose settling mark, this is the key of, if it is one. Both are kept where the key is: on
/// one server, their order counts.
pub(crate) fn key_of_lease(lease: &str) -> Option<&str> {
    let key = lease.strip_suffix(LEASE)?.strip_suffix(':').filter(|key| !key.is_empty())?;
    Some(key_of_lease(key).unwrap_or(key))
}

#[cfg(test)]
mod tests {
    use super::{key_of_lease, lease_key, settling_key};

    #[test]
    fn the_key_of_a_lease_leads_back_to_its_key() {
        assert_eq!(key_of_lease(&lease_key("user:7")), Some("user:7"));
        assert_eq!(key_of_lease(&settling_key("user:7")), Some("user:7"));
        assert_eq!(key_of_lease("user:7"), None);
        assert_eq!(key_of_lease(":prefork-lease"), None);
    }
}
