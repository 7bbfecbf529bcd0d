//! Clients that edit and read at the same time.

use std::collections::HashMap;

use crate::shop::Shop;

/// Each has one client, who alone edits it. A new customer has no words of its own here.
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

/// Every client sees its own last word in each answer, and of the others' words none that is not theirs or is older than
/// what it has seen. `memory_of` says which of the memories a worker reads.
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
            for (_, key) in WORDS.into_iter().filter(|(of, _)| *of == language) {
                let shown = number(language, key, &page.word(key));
                let last = seen.insert((memory, key), shown).unwrap_or(0);
                let right = if key == own { shown == last } else { shown >= last };
                assert!(right, "{language}.{key} is {shown} at worker {}, after {last}", page.worker());
            }
        }
    }
}

fn word(language: &str, key: &str, edit: usize) -> String {
    format!("{language} <{key}> {edit}")
}

/// Which edit a word is from; 0 where there was none.
fn number(language: &str, key: &str, shown: &str) -> usize {
    let number =
        (0..=EDITS).find(|edit| if *edit == 0 { shown.is_empty() } else { shown == word(language, key, *edit) });
    number.unwrap_or_else(|| panic!("{language}.{key} is {shown:?}, which nobody has saved"))
}
