//! A customer's own texts, in front of the default ones from files.
//!
//! They are stored in the format of the `KeyValue` backend of Ruby's I18n gem, JSON under `language.dotted.key`, so
//! that both can read the same store. rust-i18n calls its backends for one text at a time, and is not asynchronous: a
//! request therefore reads all texts of its language first, in one round trip, and lends them to the backend while it
//! renders the page.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

use prefork_cache::{Cache, Error, Expiry, Result};
use rust_i18n::Backend;

/// The texts that a customer may change.
pub(crate) const KEYS: [&str; 6] =
    ["shop.title", "shop.welcome", "shop.in_stock", "widget.gear", "widget.spring", "widget.lever"];

pub(crate) const LANGUAGES: [(&str, &str); 2] = [("en", "English"), ("de", "Deutsch")];

/// The longest text, in characters.
pub(crate) const LONGEST: usize = 200;

thread_local! {
    static LENT: RefCell<Texts> = RefCell::default();
}

/// A customer's own texts, by full key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Texts(HashMap<String, String>);

impl Texts {
    /// Reads the texts of one language. Returns the readable ones, and an error if any read failed.
    pub(crate) async fn read(own: &Cache, language: &str) -> (Texts, Option<Error>) {
        let keys = KEYS.map(|key| full_key(language, key));
        let found = own.get_many_raw(&keys.each_ref().map(String::as_str)).await;
        let mut texts = Texts::default();
        let mut failure = None;
        for (key, found) in keys.into_iter().zip(found) {
            match found.map(|json| json.and_then(|json| serde_json::from_slice(&json).ok())) {
                Ok(Some(word)) => drop(texts.0.insert(key, word)),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        (texts, failure)
    }

    pub(crate) fn get(&self, language: &str, key: &str) -> Option<&str> {
        self.0.get(&full_key(language, key)).map(String::as_str)
    }

    /// Runs `render`, during which the backend has these texts. It is not asynchronous, so no other request runs in
    /// between.
    pub(crate) fn lend<R>(&self, render: impl FnOnce() -> R) -> R {
        LENT.set(self.clone());
        let rendered = render();
        LENT.take();
        rendered
    }
}

/// Stores a text; an empty one restores the default.
pub(crate) async fn change(own: &Cache, language: &str, key: &str, word: &str) -> Result<()> {
    let key = full_key(language, key);
    if word.is_empty() {
        return own.delete(&key).await.map(drop);
    }
    own.set_raw(&key, json(word), Expiry::NEVER).await
}

/// Stores the initial texts of a new customer. A customer that has them keeps its own.
pub(crate) fn store_initial(own: &Cache, customer: &str) -> Result<()> {
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

/// The backend in front of the files, which have the texts that it lacks.
pub(crate) struct OwnTexts;

impl Backend for OwnTexts {
    fn available_locales(&self) -> Vec<Cow<'_, str>> {
        LANGUAGES.iter().map(|(language, _)| Cow::Borrowed(*language)).collect()
    }

    fn translate(&self, locale: &str, key: &str) -> Option<Cow<'_, str>> {
        LENT.with_borrow(|texts| texts.get(locale, key).map(|word| Cow::Owned(word.to_owned())))
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
