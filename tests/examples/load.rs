//! Clients that edit and read at the same time.

use std::collections::HashMap;

use crate::shop::Shop;

/// Each word has one client, which alone edits it. A new customer starts without its own words.
const WORDS: [(&str, &str); 8] = [
    ("en", "shop.welcome"),
    ("en", "shop.in_stock"),
    ("en", "widget.spring"),
    ("en", "widget.lever"),
    ("de", "shop.welcome"),
    ("de", "shop.in_stock"),
    ("de", "widget.spring"),
    ("de", "widget.lever"),
];

const EDITS: usize = 25;
const READS_PER_EDIT: usize = 4;

/// Every client reads its own last word in each response. Words of others are theirs, and never older than one seen
/// before. `memory_of` returns the memory that a worker reads: 0 if all share one.
pub(crate) fn edit_and_read(shop: &Shop, memory_of: fn(u32) -> u32) {
    std::thread::scope(|scope| {
        for own in WORDS {
            scope.spawn(move || client(shop, own, memory_of));
        }
    });
}

fn client(shop: &Shop, (language, own): (&str, &str), memory_of: fn(u32) -> u32) {
    let mut seen: HashMap<(u32, &str), usize> = HashMap::new();
    for edit in 1..=EDITS {
        let author = shop.save(language, own, &word(language, own, edit));
        seen.insert((memory_of(author), own), edit);
        for _ in 0..READS_PER_EDIT {
            let page = shop.get(&format!("/?lang={language}"));
            let memory = memory_of(page.worker());
            for (_, key) in WORDS.into_iter().filter(|(word_language, _)| *word_language == language) {
                let shown = number(language, key, &page.word(key));
                let last = seen.insert((memory, key), shown).unwrap_or(0);
                let is_expected = if key == own { shown == last } else { shown >= last };
                assert!(is_expected, "{language}.{key} is {shown} at worker {}, after {last}", page.worker());
            }
        }
    }
}

fn word(language: &str, key: &str, edit: usize) -> String {
    format!("{language} <{key}> {edit}")
}

/// Returns which edit a word is from; 0 before the first edit.
fn number(language: &str, key: &str, shown: &str) -> usize {
    let number =
        (0..=EDITS).find(|edit| if *edit == 0 { shown.is_empty() } else { shown == word(language, key, *edit) });
    number.unwrap_or_else(|| panic!("{language}.{key} is {shown:?}, which no client has saved"))
}
