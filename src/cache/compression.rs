//! Making values smaller: zlib, as Rails and Dalli do.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

/// What goes before the stream: the length that it inflates to.
const PREAMBLE: usize = 4;

/// The bytes compressed, unless that would make them no smaller.
pub(super) fn deflated(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::fast());
    encoder.write_all(bytes).ok()?;
    let stream = encoder.finish().ok()?;
    (stream.len() + PREAMBLE < bytes.len()).then_some(stream)
}

/// What a stream inflates to, if that has exactly this length. Never takes more memory, whatever the stream holds.
pub(super) fn inflated(stream: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut decoder = ZlibDecoder::new(stream);
    let mut bytes = Vec::new();
    (&mut decoder).take(length as u64).read_to_end(&mut bytes).ok()?;
    // Read to its end, which is where its checksum is.
    let has_ended = matches!(decoder.read(&mut [0]), Ok(0));
    (bytes.len() == length && has_ended && decoder.total_in() == stream.len() as u64).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::{deflated, inflated};

    #[test]
    fn what_goes_in_comes_out() {
        let text = b"a widget, ".repeat(500);
        let stream = deflated(&text).unwrap();
        assert!(stream.len() < text.len() / 10, "{} of {}", stream.len(), text.len());
        assert_eq!(inflated(&stream, text.len()), Some(text));
    }

    #[test]
    fn what_would_not_shrink_is_left_alone() {
        assert_eq!(deflated(b"short"), None);
        let mut noise = [0; 4_096];
        getrandom::fill(&mut noise).unwrap();
        assert_eq!(deflated(&noise), None);
    }

    #[test]
    fn another_length_than_the_stated_is_damage() {
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
