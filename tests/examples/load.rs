//! Clients that edit and read texts at the same time.

use std::collections::HashMap;

use crate::shop::Shop;

/// The texts. One client edits each. For a new customer all of them are the defaults.
const TEXTS: [(&str, &str); 8] = [
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

/// Checks that every client sees its own last text in each response, and never a text of another client that is older
/// than one it has seen, or that no client has saved. `memory_of` returns which memory a worker reads.
pub(crate) fn edit_and_read(shop: &Shop, memory_of: fn(u32) -> u32) {
    std::thread::scope(|scope| {
        for own in TEXTS {
            scope.spawn(move || client(shop, own, memory_of));
        }
    });
}

fn client(shop: &Shop, (language, own): (&str, &str), memory_of: fn(u32) -> u32) {
    let mut seen: HashMap<(u32, &str), usize> = HashMap::new();
    for edit in 1..=EDITS {
        let author = shop.save(language, own, &text(language, own, edit));
        seen.insert((memory_of(author), own), edit);
        for _ in 0..READS_PER_EDIT {
            let page = shop.get(&format!("/?lang={language}"));
            let memory = memory_of(page.worker());
            for (_, key) in TEXTS.into_iter().filter(|(of, _)| *of == language) {
                let shown = number(language, key, &page.word(key));
                let last = seen.insert((memory, key), shown).unwrap_or(0);
                let is_current = if key == own { shown == last } else { shown >= last };
                assert!(is_current, "{language}.{key} is {shown} at worker {}, after {last}", page.worker());
            }
        }
    }
}

fn text(language: &str, key: &str, edit: usize) -> String {
    format!("{language} <{key}> {edit}")
}

/// Returns the number of the edit that a text is from; 0 for none.
fn number(language: &str, key: &str, shown: &str) -> usize {
    let number =
        (0..=EDITS).find(|edit| if *edit == 0 { shown.is_empty() } else { shown == text(language, key, *edit) });
    number.unwrap_or_else(|| panic!("{language}.{key} is {shown:?}, which no client has saved"))
}
