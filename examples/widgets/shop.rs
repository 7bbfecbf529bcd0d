//! Request handlers: the page, and the form that changes a text.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Form, Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use prefork_cache::stores::MemoryStore;
use prefork_cache::{Cache, Result, lifecycle};
use rust_i18n::t;
use serde::Deserialize;

use crate::catalogue;
use crate::options::Options;
use crate::page::{self, Draft, Notice, Page};
use crate::words::{self, KEYS, LANGUAGES, LONGEST, Texts};

/// Large enough for a text that is far too long, so that the response can explain the refusal.
const LARGEST_BODY: usize = 256 << 10;

/// The headers of each response. With one connection per request, reloading the page reaches another worker; a real
/// shop would keep its connections.
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONNECTION, "close"),
    (header::CACHE_CONTROL, "no-store"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

pub(crate) struct Shop {
    customer: String,
    /// The cache of this customer.
    cache: Cache,
    /// The customer's own texts.
    own: Cache,
    place: String,
    audience: Audience,
    memory: Option<Arc<MemoryStore>>,
    workers: u32,
}

/// The workers that see a text which one worker has stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    Every,
    One,
    Zero,
}

#[derive(Default, Deserialize)]
struct PageQuery {
    lang: Option<String>,
    /// The key of a text that was just saved.
    saved: Option<String>,
    /// The worker that saved it.
    by: Option<u32>,
}

#[derive(Deserialize)]
struct Edit {
    lang: String,
    key: String,
    word: String,
}

impl Shop {
    /// Opens the cache, without I/O.
    pub(crate) fn open(options: &Options) -> Shop {
        let audience = match options.store.name() {
            "memory" => Audience::One,
            "null" => Audience::Zero,
            _ => Audience::Every,
        };
        let all = Cache::builder(Arc::clone(&options.store)).name("widgets").namespace("widgets-example").register();
        let cache = all.namespace(&options.customer);
        let own = cache.namespace("words");
        Shop {
            customer: options.customer.clone(),
            cache,
            own,
            place: options.place.clone(),
            audience,
            memory: options.memory.clone(),
            workers: options.workers,
        }
    }

    /// Loads texts and widgets into the cache, in the master before it forks.
    pub(crate) fn warm(&self) -> Result<()> {
        words::store_initial(&self.own, &self.customer)?;
        catalogue::warm(&self.cache);
        if let Some(memory) = &self.memory {
            memory.freeze();
        }
        Ok(())
    }

    pub(crate) fn router(self: Arc<Shop>) -> Router {
        Router::new()
            .route("/", get(show).post(edit))
            .layer(DefaultBodyLimit::max(LARGEST_BODY))
            .layer(map_response(async |response: Response| (HEADERS, response)))
            .with_state(self)
    }

    async fn page(&self, status: StatusCode, language: &str, notice: Option<Notice>, draft: Option<Draft>) -> Response {
        let (texts, error) = Texts::read(&self.own, language).await;
        let down = error.map(|error| Notice::bad(t!("ui.down", locale = language, error = format!("{error:#}"))));
        let page = Page {
            language,
            customer: &self.customer,
            notices: down.into_iter().chain(notice).collect(),
            widgets: catalogue::widgets(&self.cache).await,
            texts: &texts,
            draft,
            audience: self.audience,
            place: &self.place,
            frozen: self.memory.as_ref().map(|memory| memory.usage().frozen),
            workers: self.workers,
            worker: std::process::id(),
            generation: lifecycle::generation(),
            stats: self.cache.stats(),
        };
        (status, Html(page::render(&page))).into_response()
    }
}

async fn show(State(shop): State<Arc<Shop>>, query: Result<Query<PageQuery>, QueryRejection>) -> Response {
    let query = query.map(|Query(query)| query).unwrap_or_default();
    let language = known_language(query.lang.as_deref());
    let notice = query.saved.filter(|key| KEYS.contains(&key.as_str())).zip(query.by).map(|(key, by)| {
        let saved = t!("ui.saved", locale = language, key = key, worker = by);
        let worker = std::process::id();
        if shop.audience == Audience::One && by != worker {
            return Notice::bad(format!("{saved} {}", t!("ui.not_here", locale = language, worker = worker)));
        }
        Notice::good(saved)
    });
    shop.page(StatusCode::OK, language, notice, None).await
}

async fn edit(State(shop): State<Arc<Shop>>, form: Result<Form<Edit>, FormRejection>) -> Response {
    let edit = match form {
        Ok(Form(edit)) => edit,
        Err(rejection) => {
            let language = known_language(None);
            let notice = Notice::bad(t!("ui.bad_form", locale = language, error = rejection.body_text()));
            return shop.page(rejection.status(), language, Some(notice), None).await;
        }
    };
    let language = known_language(Some(&edit.lang));
    let word = edit.word.trim();
    let (status, reason) = match refused(language, &edit.key, word) {
        Some(reason) => (StatusCode::UNPROCESSABLE_ENTITY, reason),
        None => match words::change(&shop.own, language, &edit.key, word).await {
            Ok(()) => {
                let worker = std::process::id();
                let page = format!("/?lang={language}&saved={}&by={worker}", edit.key);
                return Redirect::to(&page).into_response();
            }
            Err(error) => {
                let reason = t!("ui.not_saved", locale = language, error = format!("{error:#}"));
                (StatusCode::SERVICE_UNAVAILABLE, reason.into())
            }
        },
    };
    shop.page(status, language, Some(Notice::bad(reason)), Some(Draft { key: edit.key, word: edit.word })).await
}

/// Returns why an edit is refused, or `None`.
fn refused(language: &str, key: &str, word: &str) -> Option<String> {
    let length = word.chars().count();
    if !KEYS.contains(&key) {
        let shown: String = key.chars().take(LONGEST).collect();
        return Some(t!("ui.unknown_word", locale = language, key = shown).into());
    }
    if length > LONGEST {
        return Some(t!("ui.too_long", locale = language, length = length, longest = LONGEST).into());
    }
    word.contains(char::is_control).then(|| t!("ui.control", locale = language).into())
}

fn known_language(requested: Option<&str>) -> &'static str {
    let known = LANGUAGES.map(|(language, _)| language);
    known.into_iter().find(|language| requested == Some(*language)).unwrap_or(known[0])
}
