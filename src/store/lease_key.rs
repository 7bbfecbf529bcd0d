//! The key of a lease, which stands beside the entry that is loaded under it.

/// What is put behind a key, with a colon, to make that of its lease.
pub(crate) const LEASE: &str = "prefork-lease";

/// The key of the lease of a key, both as the store sees them.
pub(crate) fn lease_key(key: &str) -> String {
    format!("{key}:{LEASE}")
}

/// The key whose lease this is the key of, if it is one. A lease is kept where its key is: on one server, their order
/// counts.
pub(crate) fn key_of_lease(lease: &str) -> Option<&str> {
    lease.strip_suffix(LEASE)?.strip_suffix(':').filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{key_of_lease, lease_key};

    #[test]
    fn the_key_of_a_lease_leads_back_to_its_key() {
        assert_eq!(key_of_lease(&lease_key("user:7")), Some("user:7"));
        assert_eq!(key_of_lease("user:7"), None);
        assert_eq!(key_of_lease(":prefork-lease"), None);
    }
}
