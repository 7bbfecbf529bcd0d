//! The ring: which server has a key. It is Dalli's consistent hashing, so that Ruby programs on the same servers find
//! the same entries.
//!
//! Each server has points on a circle of 32-bit numbers, given by the SHA-1 of its name. A key belongs to the server
//! of the point at or below the key's CRC-32. If that server is down, the key is hashed again, prefixed with the
//! number of the attempt.

use std::iter;

use crc32fast::Hasher;
use sha1_smol::Sha1;

const POINTS_PER_SERVER: u64 = 160;
const TRIES: usize = 20;

#[derive(Debug)]
pub(super) struct Ring {
    /// The points and their servers, in ascending order. Empty if there is only one server, which has every key.
    points: Vec<(u32, usize)>,
}

impl Ring {
    /// Creates a ring from the names and weights of the servers. The ring returns indices into this list.
    pub(super) fn new(servers: &[(String, u32)]) -> Ring {
        if servers.len() == 1 {
            return Ring { points: Vec::new() };
        }
        let total: u64 = servers.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut points = Vec::new();
        for (server, (name, weight)) in servers.iter().enumerate() {
            let count = servers.len() as u64 * POINTS_PER_SERVER * u64::from(*weight) / total;
            points.extend((0..count).map(|index| (point(name, index), server)));
        }
        points.sort_unstable();
        Ring { points }
    }

    pub(super) fn owner(&self, key: &[u8]) -> usize {
        if self.points.is_empty() { 0 } else { self.at(crc32fast::hash(key)) }
    }

    /// Returns the owner of a key, followed by the servers to try if all before are down. A server may occur more than
    /// once.
    pub(super) fn candidates<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
        let others = (0..TRIES - 1).map(|attempt| self.at(rehash(attempt, key)));
        iter::once(self.owner(key)).chain(others)
    }

    fn at(&self, hash: u32) -> usize {
        let above = self.points.partition_point(|(point, _)| *point <= hash);
        let at_or_below = above.checked_sub(1).map(|index| self.points[index]);
        at_or_below.or(self.points.last().copied()).map_or(0, |(_, server)| server)
    }
}

fn point(name: &str, index: u64) -> u32 {
    let digest = Sha1::from(format!("{name}:{index}")).digest().bytes();
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

fn rehash(attempt: usize, key: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(attempt.to_string().as_bytes());
    hasher.update(key);
    hasher.finalize()
}

/// The expected values are from Dalli.
#[cfg(test)]
mod tests {
    use super::Ring;

    fn three() -> Ring {
        Ring::new(&["127.0.0.1:11211", "127.0.0.1:11212", "127.0.0.1:11213"].map(|name| (name.to_owned(), 1)))
    }

    #[test]
    fn the_points_agree_with_dalli() {
        let points = three().points;
        assert_eq!(points.len(), 480);
        assert_eq!(points[0], (6_134_957, 1));
        assert_eq!(points[479], (4_278_553_241, 0));
    }

    #[test]
    fn the_owners_agree_with_dalli() {
        let ring = three();
        for (key, expected) in [("foo", 2), ("bar", 2), ("baz", 1), ("key1", 1), ("user:42", 1)] {
            assert_eq!(ring.owner(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn a_hash_below_the_first_point_belongs_to_the_last_point() {
        assert_eq!(crc32fast::hash(b"wrap257"), 4_666_679);
        assert_eq!(three().owner(b"wrap257"), 0);
    }

    #[test]
    fn failover_agrees_with_dalli() {
        let ring = three();
        for (key, expected) in [("baz", 0), ("key1", 2), ("user:42", 2)] {
            assert_eq!(ring.candidates(key.as_bytes()).find(|server| *server != 1), Some(expected), "{key}");
        }
        assert_eq!(ring.candidates(b"baz").count(), 20);
    }

    #[test]
    fn points_are_shared_out_by_weight() {
        let ring = Ring::new(
            &[("10.0.0.1", 10), ("10.0.0.2", 5), ("10.0.0.3", 1)]
                .map(|(host, weight)| (format!("{host}:11211"), weight)),
        );
        let count = |server| ring.points.iter().filter(|point| point.1 == server).count();
        assert_eq!([count(0), count(1), count(2)], [300, 150, 30]);
        assert_eq!(ring.owner(b"foo"), 2);
        assert_eq!(ring.owner(b"bar"), 0);
    }

    #[test]
    fn one_server_has_every_key() {
        let ring = Ring::new(&[("127.0.0.1:11211".to_owned(), 7)]);
        assert!(ring.points.is_empty());
        assert!(ring.candidates(b"foo").all(|server| server == 0));
    }
}
