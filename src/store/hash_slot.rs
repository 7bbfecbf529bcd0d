//! The hash slot of a key in a Redis cluster: CRC-16 (XMODEM) of the key, or of the hash tag in its first braces.

/// The number of slots.
pub(crate) const SLOTS: usize = 1 << 14;

const POLYNOMIAL: u16 = 0x1021;

/// The CRC-16 of each byte.
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut sum = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ POLYNOMIAL };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

/// Returns the slot of a key.
#[cfg(any(feature = "redis", test))]
#[inline]
pub(crate) fn slot(key: impl AsRef<[u8]>) -> u16 {
    let key = key.as_ref();
    slot_of_sum(crc16(0, tag(key).unwrap_or(key)))
}

/// Returns the slot of a key whose CRC-16, or whose tag's, is `sum`.
#[inline]
pub(crate) fn slot_of_sum(sum: u16) -> u16 {
    sum % SLOTS as u16
}

/// Returns the hash tag, which is hashed instead of the whole key: the part between the first `{` and the first `}`
/// after it, if it is not empty.
#[inline]
pub(crate) fn tag(key: &[u8]) -> Option<&[u8]> {
    let behind = &key[key.iter().position(|byte| *byte == b'{')? + 1..];
    let length = behind.iter().position(|byte| *byte == b'}')?;
    (length > 0).then(|| &behind[..length])
}

/// Continues a CRC-16 from the sum of the bytes before; 0 starts one.
#[inline]
pub(crate) fn crc16(before: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(before, |sum, byte| (sum << 8) ^ TABLE[usize::from((sum >> 8) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::{crc16, slot, tag};

    /// The expected values are from the specification of Redis Cluster and from `CLUSTER KEYSLOT`.
    #[test]
    fn slots_agree_with_redis() {
        assert_eq!(crc16(0, b"123456789"), 0x31c3);
        for (key, expected) in [
            ("", 0),
            ("foo", 12182),
            ("bar", 5061),
            ("{foo}", 12182),
            ("a{foo}b{bar}", 12182),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("{foo", 13308),
            ("foo}", 15679),
        ] {
            assert_eq!(slot(key), expected, "{key:?}");
        }
    }

    #[test]
    fn the_tag_is_the_part_in_the_first_braces() {
        let tags = [("{a}", Some("a")), ("x{a}{b}", Some("a")), ("{{a}}", Some("{a")), ("}{a}", Some("a"))];
        for (key, expected) in tags.into_iter().chain([("a", None), ("{}a}", None), ("a{b", None), ("a}b{", None)]) {
            assert_eq!(tag(key.as_bytes()), expected.map(str::as_bytes), "{key:?}");
        }
    }
}
