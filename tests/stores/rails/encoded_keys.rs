//! Keys that are not ASCII. A key is UTF-8.

use super::store::counts_under;
use super::{LONG, everywhere, text};

#[test]
fn a_key_may_be_in_any_script() {
    everywhere(|cache| {
        for key in ["ümlaut", "キー", "مفتاح", "🔑", "tab\tand\nline"] {
            counts_under(cache, key);
        }
    });
}

/// A composed and a decomposed character look the same.
#[test]
fn keys_are_told_apart_by_their_bytes() {
    everywhere(|cache| {
        let [composed, decomposed] = ["\u{fc}mlaut", "u\u{308}mlaut"];
        cache.blocking().set(composed, "1", LONG).unwrap();
        assert_eq!(text(cache, composed).as_deref(), Some("1"));
        assert_eq!(text(cache, decomposed), None);
    });
}
