//! The key of a lease, which stands beside the entry that is loaded under it: on one server, and in a cluster in one slot.
//!
//! It is the key with a suffix, so whatever clears a prefix clears its leases too. A key whose slot is that of a tag in
//! braces hands it on. Any other is hashed as a whole, with its lease: then the suffix ends with letters that make up for
//! what stands before them. A bit of a sum depends on the bits that are summed by exclusive or alone, so each bit of the slot has
//! letters of its own that turn it and no other.

use super::hash_slot::{crc16, slot_of_sum, tag};

/// What is put behind a key, with a colon, to make that of its lease.
const LEASE: &str = "prefork-lease";

/// What is put behind a key, with a colon, to make that of a lock. Under its lease nothing is loaded.
const LOCK: &str = "prefork-lock";

const LETTERS: usize = 5;

/// The letters that turn nothing. The other ones differ from them in the bits of [`FREE`].
const PLAIN: [u8; LETTERS] = [b'A'; LETTERS];

/// In which bits a letter may differ from `A` so that it is one of `ACEGIKMOacegikmo`.
const FREE: u8 = 0b0010_1110;

/// The bits of the letters, each of which is a byte, that turn one bit of the slot: the first turn its lowest bit.
const TURNS: [u64; 14] = [
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

/// The key whose lease is the lock of a key.
pub(crate) fn lock_key(key: &str) -> String {
    format!("{key}:{LOCK}")
}

/// The key of the lease of a key, both as the store sees them.
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

/// The letters in whose place the plain ones would lead to a slot that differs in these bits.
fn letters(difference: u16) -> [u8; LETTERS] {
    let turned = TURNS.iter().enumerate().filter(|(bit, _)| difference >> bit & 1 == 1);
    let turned = turned.fold(0, |sum, (_, turns)| sum ^ turns).to_be_bytes();
    std::array::from_fn(|place| PLAIN[place] ^ turned[turned.len() - LETTERS + place])
}

/// The key of the mark of a [settle](super::Settle) that is under way, where a server cannot store one entry on the
/// condition of another: that of the lease of a lease, which nobody takes.
#[cfg(any(feature = "memcached", test))]
pub(crate) fn settling_key(key: &str) -> String {
    format!("{key}:{LEASE}:{LEASE}")
}

/// The key whose lease, or whose settling mark, this is the key of, if it is one. Both are kept where the key is: on
/// one server, their order counts.
#[cfg(any(feature = "memcached", test))]
pub(crate) fn key_of_lease(lease: &str) -> Option<&str> {
    let key = without_lease(lease)?.strip_suffix(':').filter(|key| !key.is_empty())?;
    Some(key_of_lease(key).unwrap_or(key))
}

/// What this would be the key of behind a namespace, a lease or a lock, if it would be one.
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

    /// Keys of braces and other characters, each of which comes up once, in every order.
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
    fn there_are_letters_for_every_slot() {
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
