//! Conversion of MessagePack byte strings into arrays of numbers.
//!
//! Serde serializes a `Vec<u8>` as an array of numbers, which takes up to twice the space of a byte string. So it is
//! stored as a byte string, and converted into the array before it is read. Without the conversion, an untagged enum
//! could read the byte string as a string, or fail to read it.

/// Converts all byte strings. Returns `None` if there are none, or the bytes are not MessagePack.
pub(super) fn with_numbers(body: &[u8]) -> Option<Vec<u8>> {
    let mut rest = body;
    let mut with_numbers = Vec::with_capacity(2 * body.len());
    let mut has_bytes = false;
    while let Some((&marker, after)) = rest.split_first() {
        let width = match marker {
            0xC4 => 1,
            0xC5 => 2,
            0xC6 => 4,
            _ => {
                let (token, after) = rest.split_at_checked(length_of_token(marker, after)?)?;
                with_numbers.extend_from_slice(token);
                rest = after;
                continue;
            }
        };
        let (length, after) = after.split_at_checked(width)?;
        let (bytes, after) = after.split_at_checked(number(length))?;
        with_numbers.push(0xDD);
        with_numbers.extend(u32::try_from(bytes.len()).ok()?.to_be_bytes());
        for &byte in bytes {
            // Numbers above seven bits need a marker.
            with_numbers.extend((byte > 0x7F).then_some(0xCC).into_iter().chain([byte]));
        }
        has_bytes = true;
        rest = after;
    }
    has_bytes.then_some(with_numbers)
}

/// Returns the length of a token with its marker. For an array or a map, that includes the number of entries, but not
/// the entries.
fn length_of_token(marker: u8, after: &[u8]) -> Option<usize> {
    let counted = |width: usize, more: usize| Some(1 + width + more + number(after.get(..width)?));
    match marker {
        0xA0..=0xBF => Some(1 + usize::from(marker & 0x1F)),
        0xC1 => None,
        0xCC | 0xD0 => Some(2),
        0xCD | 0xD1 | 0xDC | 0xDE => Some(3),
        0xCA | 0xCE | 0xD2 | 0xDD | 0xDF => Some(5),
        0xCB | 0xCF | 0xD3 => Some(9),
        0xD4..=0xD8 => Some(2 + (1 << (marker - 0xD4))),
        0xD9 => counted(1, 0),
        0xDA => counted(2, 0),
        0xDB => counted(4, 0),
        0xC7 => counted(1, 1),
        0xC8 => counted(2, 1),
        0xC9 => counted(4, 1),
        _ => Some(1),
    }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rmp_serde::config::BytesMode;
    use serde::Serialize;

    use super::with_numbers;

    fn packed(value: &impl Serialize, mode: BytesMode) -> Vec<u8> {
        let mut packed = Vec::new();
        value.serialize(&mut rmp_serde::Serializer::new(&mut packed).with_bytes(mode)).unwrap();
        packed
    }

    #[test]
    fn byte_strings_become_arrays_at_any_depth() {
        for length in [1, 15, 16, 255, 256, 70_000] {
            let bytes: Vec<u8> = (0..length).map(|n: usize| n as u8).collect();
            let text = "x".repeat(length);
            let around = BTreeMap::from([(text.clone(), vec![(-1_i64, u64::MAX, 1.5_f32, 2.5, bytes.clone(), true)])]);
            let short = (1_u8, 200_u16, 70_000, None::<u8>, 'x', i8::MIN, i16::MIN, i32::MIN, &text, &around, bytes);
            let expected: Vec<u64> =
                rmp_serde::from_slice(&with_numbers(&packed(&short.10, BytesMode::ForceIterables)).unwrap()).unwrap();
            assert_eq!(expected.len(), length);
            let changed = with_numbers(&packed(&short, BytesMode::ForceIterables)).unwrap();
            type Short = (
                u8,
                u16,
                u32,
                Option<u8>,
                char,
                i8,
                i16,
                i32,
                String,
                BTreeMap<String, Vec<(i64, u64, f32, f64, Vec<u16>, bool)>>,
                Vec<u16>,
            );
            let read: Short = rmp_serde::from_slice(&changed).unwrap();
            assert_eq!((read.8, read.10.len()), (text, length));
        }
        assert_eq!(with_numbers(&packed(&("text", 1), BytesMode::ForceIterables)), None);
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let whole = packed(&("text", vec![1_u8; 300]), BytesMode::ForceIterables);
        for length in 0..whole.len() {
            assert_eq!(with_numbers(&whole[..length]), None, "cut at {length}");
        }
        assert_eq!(with_numbers(b"\xC1\xC4\x01\x01"), None);
    }
}
