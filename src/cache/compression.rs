//! Compression of values with zlib, as in Rails and Dalli.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

/// Length of the field before the stream, which has the inflated length.
const LENGTH_FIELD: usize = 4;

/// Compresses bytes. Returns `None` if the result would not be smaller.
pub(super) fn deflated(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    encoder.write_all(bytes).ok()?;
    let stream = encoder.finish().ok()?;
    (stream.len() + LENGTH_FIELD < bytes.len()).then_some(stream)
}

/// Inflates a stream. Returns `None` unless the result has exactly this length. Never allocates more, whatever the
/// stream contains.
pub(super) fn inflated(stream: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut decoder = ZlibDecoder::new(stream);
    let mut bytes = Vec::new();
    (&mut decoder).take(length as u64).read_to_end(&mut bytes).ok()?;
    // Read past the last byte, since the checksum is at the end.
    let has_ended = matches!(decoder.read(&mut [0]), Ok(0));
    (bytes.len() == length && has_ended && decoder.total_in() == stream.len() as u64).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{deflated, inflated};

    #[test]
    fn compressed_bytes_round_trip() {
        let text = b"a widget, ".repeat(500);
        let stream = deflated(&text).unwrap();
        assert!(stream.len() < text.len() / 10, "{} of {}", stream.len(), text.len());
        assert_eq!(inflated(&stream, text.len()), Some(text));
    }

    #[test]
    fn incompressible_bytes_are_not_compressed() {
        assert_eq!(deflated(b"short"), None);
        let mut noise = [0; 4_096];
        getrandom::fill(&mut noise).unwrap();
        assert_eq!(deflated(&noise), None);
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let stream = deflated(&[0; 1 << 20]).unwrap();
        assert!(inflated(&stream, 1 << 20).is_some());
        assert_eq!(inflated(&stream, (1 << 20) - 1), None);
        assert_eq!(inflated(&stream, (1 << 20) + 1), None);
    }

    #[test]
    fn any_damage_is_noticed() {
        let text = b"a widget, ".repeat(50);
        let stream = deflated(&text).unwrap();
        for cut in 0..stream.len() {
            assert_eq!(inflated(&stream[..cut], text.len()), None, "cut at {cut}");
        }
        let longer = [&stream[..], b"x"].concat();
        assert_eq!(inflated(&longer, text.len()), None);
        for at in 0..stream.len() {
            let mut damaged = stream.clone();
            damaged[at] ^= 0x10;
            assert_ne!(inflated(&damaged, text.len()).as_deref(), Some(&b"something else"[..]));
            assert!(inflated(&damaged, text.len()).is_none_or(|bytes| bytes == text), "damaged at {at}");
        }
    }
}
