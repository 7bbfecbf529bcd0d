//! A customer's own words, before the default ones from files.
//!
//! They are kept as the `KeyValue` backend of Ruby's I18n gem keeps them, JSON under `language.dotted.key`, so that both can
//! read the same store. rust-i18n asks its backends for one word at a time and cannot wait: a request therefore reads all
//! the words of its language first, in one round trip, and lends them to the backend while its page is made.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

use prefork_cache::{Cache, Error, Expiry, Result};
use rust_i18n::Backend;

/// The words that a customer may change.
pub(crate) const KEYS: [&str; 6] =
    ["shop.title", "shop.welcome", "shop.in_stock", "widget.gear", "widget.spring", "widget.lever"];

pub(crate) const LANGUAGES: [(&str, &str); 2] = [("en", "English"), ("de", "Deutsch")];

/// In characters.
pub(crate) const LONGEST: usize = 200;

thread_local! {
    static LENT: RefCell<Words> = RefCell::default();
}

/// The own words of a customer, by their full keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words(HashMap<String, String>);

impl Words {
    /// Those of one language, as far as they can be read, and what went wrong.
    pub(crate) async fn read(own: &Cache, language: &str) -> (Words, Option<Error>) {
        let keys = KEYS.map(|key| full_key(language, key));
        let found = own.get_many_raw(&keys.each_ref().map(String::as_str)).await;
        let mut words = Words::default();
        let mut trouble = None;
        for (key, found) in keys.into_iter().zip(found) {
            match found.map(|json| json.and_then(|json| serde_json::from_slice(&json).ok())) {
                Ok(Some(word)) => drop(words.0.insert(key, word)),
                Ok(None) => {}
                Err(error) => trouble = Some(error),
            }
        }
        (words, trouble)
    }

    pub(crate) fn get(&self, language: &str, key: &str) -> Option<&str> {
        self.0.get(&full_key(language, key)).map(String::as_str)
    }

    /// Runs `speak`, during which the backend has these words. It is not asynchronous, so no other request comes between.
    pub(crate) fn lend<R>(&self, speak: impl FnOnce() -> R) -> R {
        LENT.set(self.clone());
        let spoken = speak();
        LENT.take();
        spoken
    }
}

/// Keeps a word, or with an empty one goes back to the default.
pub(crate) async fn change(own: &Cache, language: &str, key: &str, word: &str) -> Result<()> {
    let key = full_key(language, key);
    if word.is_empty() {
        return own.delete(&key).await.map(drop);
    }
    own.set_raw(&key, json(word), Expiry::NEVER).await
}

/// What a customer begins with. One that has begun keeps what it has.
pub(crate) fn begin(own: &Cache, customer: &str) -> Result<()> {
    let own = own.blocking();
    if own.exists("begun")? {
        return Ok(());
    }
    for (key, word) in [
        ("en.shop.title", format!("The gadgets of {customer}")),
        ("en.widget.gear", "Cogwheel".to_owned()),
        ("de.shop.title", format!("Die Dingsbumse von {customer}")),
        ("de.widget.gear", "Räderwerk".to_owned()),
    ] {
        own.set_raw(key, json(&word), Expiry::NEVER)?;
    }
    own.set("begun", &true, Expiry::NEVER)
}

/// Before the files in the chain: what it does not have, they do.
pub(crate) struct OwnWords;

impl Backend for OwnWords {
    fn available_locales(&self) -> Vec<Cow<'_, str>> {
        LANGUAGES.iter().map(|(language, _)| Cow::Borrowed(*language)).collect()
    }

    fn translate(&self, locale: &str, key: &str) -> Option<Cow<'_, str>> {
        LENT.with_borrow(|words| words.get(locale, key).map(|word| Cow::Owned(word.to_owned())))
    }

    fn messages_for_locale(&self, locale: &str) -> Option<Vec<(Cow<'_, str>, Cow<'_, str>)>> {
        let own = |key| Some((Cow::Borrowed(key), self.translate(locale, key)?));
        Some(KEYS.into_iter().filter_map(own).collect())
    }
}

fn full_key(language: &str, key: &str) -> String {
    format!("{language}.{key}")
}

fn json(word: &str) -> String {
    serde_json::Value::from(word).to_string()
}
