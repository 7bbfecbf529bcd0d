//! The page, in HTML without scripts. All external strings are escaped.

use std::fmt::{self, Display, Formatter, Write};

use prefork_cache::Stats;
use rust_i18n::t;

use crate::catalogue::Widget;
use crate::shop::Audience;
use crate::words::{KEYS, LANGUAGES, Texts};

const STYLE: &str = include_str!("page.css");

pub(crate) struct Page<'a> {
    pub(crate) language: &'a str,
    pub(crate) customer: &'a str,
    pub(crate) notices: Vec<Notice>,
    pub(crate) widgets: Vec<Widget>,
    pub(crate) texts: &'a Texts,
    /// A refused edit, to be corrected.
    pub(crate) draft: Option<Draft>,
    pub(crate) audience: Audience,
    pub(crate) place: &'a str,
    /// The number of bytes that the master has frozen, shared by all workers.
    pub(crate) frozen: Option<u64>,
    pub(crate) workers: u32,
    pub(crate) worker: u32,
    pub(crate) generation: u64,
    pub(crate) stats: Stats,
}

pub(crate) struct Notice {
    class: &'static str,
    text: String,
}

impl Notice {
    pub(crate) fn good(text: impl Into<String>) -> Notice {
        Notice { class: "good", text: text.into() }
    }

    pub(crate) fn bad(text: impl Into<String>) -> Notice {
        Notice { class: "bad", text: text.into() }
    }
}

pub(crate) struct Draft {
    pub(crate) key: String,
    pub(crate) word: String,
}

pub(crate) fn render(page: &Page<'_>) -> String {
    // Outside of `lend`, `t!` returns the default texts.
    let defaults = KEYS.map(|key| t!(key, locale = page.language));
    page.texts.lend(|| {
        let language = page.language;
        let title = Text(t!("shop.title", locale = language));
        let welcome = Text(t!("shop.welcome", locale = language));
        let languages = list(&LANGUAGES, |(code, name)| match *code == language {
            true => format!("<b>{name}</b> "),
            false => format!("<a href=\"/?lang={code}\" hreflang={code} lang={code}>{name}</a> "),
        });
        let notices =
            list(&page.notices, |notice| format!("<p class={} role=status>{}</p>\n", notice.class, Text(&notice.text)));
        let widgets = list(&page.widgets, |widget| card(language, widget));
        let words_title = Text(t!("ui.words", locale = language, customer = page.customer));
        let words_help = Text(t!("ui.words_help", locale = language));
        let kept = Text(match page.audience {
            Audience::Every => t!("ui.kept_shared", locale = language),
            Audience::One => t!("ui.kept_per_worker", locale = language),
            Audience::Zero => t!("ui.kept_nowhere", locale = language),
        });
        let forms = list(KEYS.iter().zip(&defaults), |(key, default)| form(page, key, default));
        let served_by = served_by(page);
        format!(
            "<!doctype html>\n<html lang={language}>\n<head>\n<meta charset=utf-8>\n\
             <meta name=viewport content=\"width=device-width, initial-scale=1\">\n\
             <meta name=color-scheme content=\"light dark\">\n<link rel=icon href=\"data:,\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <header><nav>{languages}</nav><h1>{title}</h1><p>{welcome}</p></header>\n<main>\n{notices}\
             <ul class=widgets>\n{widgets}</ul>\n\
             <section>\n<h2>{words_title}</h2>\n<p>{words_help}</p>\n{forms}<p class=kept>{kept}</p>\n</section>\n\
             <section>\n{served_by}</section>\n</main>\n</body>\n</html>\n"
        )
    })
}

fn card(language: &str, widget: &Widget) -> String {
    let name = Text(t!(&widget.name, locale = language));
    let (euros, cents) = (widget.cents / 100, format!("{:02}", widget.cents % 100));
    let price = Text(t!("ui.price", locale = language, euros = euros, cents = cents));
    let in_stock = Text(t!("shop.in_stock", locale = language));
    let (sign, stock) = (widget.sign, widget.stock);
    format!(
        "<li><span class=sign aria-hidden=true>{sign}</span><h3>{name}</h3>\
         <p class=price>{price}</p><p>{stock} {in_stock}</p></li>\n"
    )
}

/// Returns the form that changes one text.
fn form(page: &Page<'_>, key: &str, default: &str) -> String {
    let draft = page.draft.as_ref().filter(|draft| draft.key == key).map(|draft| draft.word.as_str());
    let word = Text(draft.or_else(|| page.texts.get(page.language, key)).unwrap_or_default());
    let (language, default, save) = (page.language, Text(default), Text(t!("ui.save", locale = page.language)));
    format!(
        "<form method=post action=\"/\"><input type=hidden name=lang value={language}>\
         <input type=hidden name=key value=\"{key}\"><label for=\"{key}\">{key}</label>\
         <input id=\"{key}\" name=word value=\"{word}\" placeholder=\"{default}\" autocomplete=off>\
         <button aria-label=\"{save}: {key}\">{save}</button></form>\n"
    )
}

fn served_by(page: &Page<'_>) -> String {
    let (language, stats) = (page.language, &page.stats);
    let text = |key: &str| t!(key, locale = language, customer = page.customer);
    let who = [
        ("ui.worker", page.worker.to_string()),
        ("ui.generation", page.generation.to_string()),
        ("ui.store", page.place.to_owned()),
    ];
    let frozen = page.frozen.map(|bytes| {
        let saved = bytes * u64::from(page.workers.saturating_sub(1));
        let text = t!("ui.frozen_bytes", locale = language, bytes = bytes, workers = page.workers, saved = saved);
        ("ui.frozen", text.into_owned())
    });
    let who = who.into_iter().chain(frozen);
    let who = list(who, |(name, value)| {
        format!("<tr><th scope=row>{}</th><td colspan=2>{}</td></tr>\n", Text(text(name)), Text(value))
    });
    let counts = [
        ("ui.hits", stats.hits, "ui.hits_help"),
        ("ui.misses", stats.misses, "ui.misses_help"),
        ("ui.loads", stats.loads, "ui.loads_help"),
        ("ui.reconnects", stats.reconnects, "ui.reconnects_help"),
        ("ui.errors", stats.errors, "ui.errors_help"),
    ];
    let counts = list(counts, |(name, count, help)| {
        format!("<tr><th scope=row>{}</th><td>{count}</td><td>{}</td></tr>\n", Text(text(name)), Text(text(help)))
    });
    let (title, counted) = (Text(text("ui.served_by")), Text(text("ui.counted")));
    format!("<h2>{title}</h2>\n<table>\n{who}{counts}</table>\n<p>{counted}</p>\n")
}

fn list<T>(items: impl IntoIterator<Item = T>, item: impl FnMut(T) -> String) -> String {
    items.into_iter().map(item).collect()
}

/// A string, escaped for HTML, also within quotes.
struct Text<T>(T);

impl<T: AsRef<str>> Display for Text<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.as_ref().chars().try_for_each(|char| match char {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            char => f.write_char(char),
        })
    }
}
