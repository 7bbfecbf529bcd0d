//! The key of a lease, which is stored beside the entry that is loaded under it: on the same server, and in a Redis
//! cluster in the same slot.
//!
//! The lease's key is the entry's key with a suffix, so clearing a prefix clears its leases too. If the key has a hash
//! tag in braces, the lease's key has the same tag, and therefore the same slot. Any other key is hashed as a whole,
//! and the suffix would change its slot. The suffix then ends with letters that restore the slot. CRC-16 is linear:
//! each bit of the sum is an exclusive or of bits of the input. So for each bit of the slot there is a set of letters
//! that flips this bit and no other.

use super::hash_slot::{crc16, slot_of_sum, tag};

/// Appended to a key, with a colon, to form the key of its lease.
const LEASE: &str = "prefork-lease";

/// Appended to a key, with a colon, to form the key of a lock: the key whose lease is the lock. Nothing is loaded under
/// that lease.
const LOCK: &str = "prefork-lock";

const LETTERS: usize = 5;

/// The letters that flip no bit. All others differ from them only in the bits of [`FREE`].
const PLAIN: [u8; LETTERS] = [b'A'; LETTERS];

/// The bits in which a letter may differ from `A`, so that it is one of `ACEGIKMOacegikmo`.
const FREE: u8 = 0b0010_1110;

/// For each bit of the slot, lowest first: the bits of the letters that flip it. A letter is a byte.
const FLIPS: [u64; 14] = [
    0x2e_24_04_02_00,
    0x08_20_0c_00_00,
    0x0c_08_0a_08_04,
    0x00_22_0c_0a_04,
    0x0a_06_0a_02_04,
    0x22_26_04_00_00,
    0x0a_00_08_0a_04,
    0x0c_08_0a_08_00,
    0x08_08_08_0a_04,
    0x08_28_06_00_00,
    0x28_0c_02_0a_00,
    0x08_20_0e_02_00,
    0x26_24_0a_0a_04,
    0x00_22_04_02_04,
];

/// Returns the key whose lease is the lock of a key.
pub(crate) fn lock_key(key: &str) -> String {
    format!("{key}:{LOCK}")
}

/// Returns the key of a key's lease. Both are full keys, as the store sees them.
pub(crate) fn lease_key(key: &str) -> String {
    let mut lease = String::with_capacity(key.len() + LEASE.len() + LETTERS + 2);
    lease.extend([key, ":", LEASE]);
    if tag(key.as_bytes()).is_none() {
        lease.push(':');
        let of_key = crc16(0, key.as_bytes());
        let of_plain = crc16(crc16(of_key, &lease.as_bytes()[key.len()..]), &PLAIN);
        lease.extend(letters(slot_of_sum(of_key ^ of_plain)).map(char::from));
    }
    lease
}

/// Returns the letters that change the slot in these bits, compared with [`PLAIN`].
fn letters(difference: u16) -> [u8; LETTERS] {
    let flips = FLIPS.iter().enumerate().filter(|(bit, _)| difference >> bit & 1 == 1);
    let flips = flips.fold(0, |sum, (_, flips)| sum ^ flips).to_be_bytes();
    std::array::from_fn(|index| PLAIN[index] ^ flips[flips.len() - LETTERS + index])
}

/// Returns the key of the mark that a [settle](super::Settle) in progress stores, on a server that cannot store one
/// entry on the condition of another. It is the key of the lease of a lease, which no process takes.
#[cfg(any(feature = "memcached", test))]
pub(crate) fn settling_key(key: &str) -> String {
    format!("{key}:{LEASE}:{LEASE}")
}

/// Returns the entry's key, given the key of its lease or of its settling mark; `None` for any other key. Both are on
/// the same server as the entry, since the order of their changes matters.
#[cfg(any(feature = "memcached", test))]
pub(crate) fn key_of_lease(lease: &str) -> Option<&str> {
    let key = without_lease(lease)?.strip_suffix(':').filter(|key| !key.is_empty())?;
    Some(key_of_lease(key).unwrap_or(key))
}

/// Returns "lease" or "lock" if this key, with a namespace in front, would be the key of a lease or a lock.
#[inline]
pub(crate) fn reserved_for(key: &str) -> Option<&'static str> {
    let ends = |rest: &str| rest.is_empty() || rest.ends_with(':');
    if without_lease(key).is_some_and(ends) {
        return Some("lease");
    }
    key.strip_suffix(LOCK).is_some_and(ends).then_some("lock")
}

#[inline]
fn without_lease(lease: &str) -> Option<&str> {
    lease.strip_suffix(LEASE).or_else(|| without_letters(lease)?.strip_suffix(LEASE))
}

#[inline]
fn without_letters(lease: &str) -> Option<&str> {
    let (rest, letters) = lease.as_bytes().split_last_chunk::<LETTERS>()?;
    let are_letters = rest.ends_with(b":") && letters.iter().all(|letter| letter & !FREE == PLAIN[0]);
    are_letters.then(|| &lease[..rest.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::{key_of_lease, lease_key, letters, reserved_for, settling_key};
    use crate::store::hash_slot::{SLOTS, slot, tag};

    /// Returns different keys, with braces and other characters in random order.
    fn keys() -> Vec<String> {
        const PARTS: [&str; 12] = ["{", "}", "{}", "a", "}{", ":", "{{", "user", "ä", "{t}", "{:prefork", "{x"];
        let mut state = 1_u32;
        let mut next = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state as usize / 65_536 % below
        };
        let mut key = |number: usize| {
            let parts: String = (0..next(7)).map(|_| PARTS[next(PARTS.len())]).collect();
            format!("{parts}{number}{}", PARTS[next(PARTS.len())])
        };
        (0..20_000).map(&mut key).collect()
    }

    #[test]
    fn the_slot_of_a_lease_is_that_of_its_key() {
        let keys = keys();
        for key in &keys {
            let lease = lease_key(key);
            assert_eq!(slot(&lease), slot(key), "{key:?} and {lease:?}");
            assert!(lease.starts_with(key.as_str()));
        }
        let with_tag = keys.iter().filter(|key| tag(key.as_bytes()).is_some()).count();
        assert!((5_000..15_000).contains(&with_tag), "{with_tag} have a tag");
        assert_eq!(lease_key("{user}:7"), "{user}:7:prefork-lease");
    }

    #[test]
    fn every_difference_of_slots_has_its_letters() {
        let all: std::collections::BTreeSet<_> = (0..SLOTS).map(|slot| letters(slot as u16)).collect();
        assert_eq!(all.len(), SLOTS);
        assert!(all.iter().flatten().all(|letter| b"ACEGIKMOacegikmo".contains(letter)));
    }

    #[test]
    fn the_key_of_a_lease_leads_back_to_its_key() {
        for key in keys().iter().map(String::as_str).chain(["user:7"]) {
            assert_eq!(key_of_lease(&lease_key(key)), Some(key));
            assert_eq!(key_of_lease(&settling_key(key)), Some(key));
            assert_eq!(key_of_lease(key), None);
            assert_eq!(reserved_for(&lease_key(key)), Some("lease"));
        }
        assert_eq!(key_of_lease(":prefork-lease"), None);
        for other in
            ["user:prefork-lease:ABCDE", "user:prefork-lease:AAAA", "user:ACEGI", "ACEGI", "user-prefork-lease"]
        {
            assert_eq!((key_of_lease(other), reserved_for(other)), (None, None), "{other}");
        }
    }
}
