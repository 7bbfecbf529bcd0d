//! What becomes of a loaded value: it is stored, and handed to those who wait for it; and what was revoked is taken back.

use bytes::Bytes;

use super::Loaded;
use super::flight::{Landing, Lead};
use super::form::Form;
use super::lease::Lease;
use super::loading::Fetching;
use crate::cache::Sealed;
use crate::cache::renewal::as_it_was;
use crate::error::{Error, ErrorKind, Result};
use crate::store::When;

/// The duty to load for others.
#[derive(Default)]
pub(super) struct Duty {
    /// Dropped first, for whoever waits in this process to win.
    pub(super) lease: Option<Lease>,
    pub(super) lead: Option<Lead>,
}

/// What the store holds after a load.
enum Stored {
    /// Perhaps, if the answer was lost.
    Ours(Bytes),
    /// What somebody has stored meanwhile.
    Others,
    Nothing,
}

impl Fetching<'_> {
    /// Stores what was loaded, if it is to be, and hands it to those who wait for it.
    pub(super) async fn store<V: Form>(&self, duty: Duty, loaded: Loaded<V>) -> V {
        self.ends_as("loaded");
        let Loaded { value, expiry } = loaded;
        // Encoded before anything is awaited, so that values need not be `Sync`.
        let sealed = expiry.map(|expiry| value.seal(self.cache, self.key, expiry));
        let landing = match &sealed {
            Some(Ok(Sealed { bytes, .. })) => Landing::Loaded(bytes.clone()),
            _ => value.share(self.cache, self.key).map_or(Landing::NotShareable, Landing::Loaded),
        };
        let stored = match sealed {
            // Looked at first as well, so that hardly anybody sees what is to be taken back.
            Some(_) if duty.is_revoked().await => Ok(Stored::Nothing),
            Some(sealed) if self.terms.store_answers => self.put(sealed).await,
            Some(sealed) => self.cache.counted(sealed).map(|_| Stored::Nothing),
            None => Ok(Stored::Nothing),
        };
        match stored {
            Ok(Stored::Ours(stored)) => {
                if duty.fulfil(landing).await {
                    self.take_back(&stored).await;
                }
            }
            Ok(Stored::Others) => _ = duty.fulfil(landing).await,
            Ok(Stored::Nothing) => duty.fulfil_in_vain(landing).await,
            Err(error) => {
                self.cache.report(&error);
                duty.fulfil_in_vain(landing).await;
            }
        }
        value
    }

    /// The key was deleted while its value was loaded: has the store as it was before.
    async fn take_back(&self, stored: &[u8]) {
        let former = self.terms.held.as_ref().and_then(as_it_was);
        if let Err(error) = self.cache.swap(self.key, Some(stored), former).await {
            self.cache.report(&error);
        }
    }

    /// Stores a value in the place of what was held.
    async fn put(&self, sealed: Result<Sealed>) -> Result<Stored> {
        let sealed = self.cache.counted(sealed)?;
        let stored = sealed.bytes.clone();
        let when = if self.cache.is_forced { When::Always } else { When::IfAbsent };
        let replaced = match self.terms.held.as_ref().filter(|_| when == When::IfAbsent) {
            Some(held) => self.cache.swap(self.key, Some(held), Some(sealed.clone())).await,
            None => Ok(false),
        };
        let is_stored = match replaced {
            // What was held may have ended meanwhile.
            Ok(false) => self.cache.put(self.key, Ok(sealed), when, |stored| stored).await,
            replaced => replaced,
        };
        match is_stored {
            Ok(true) => Ok(Stored::Ours(stored)),
            Ok(false) => Ok(Stored::Others),
            Err(error) if is_uncertain(&error) => {
                self.cache.report(&error);
                Ok(Stored::Ours(stored))
            }
            Err(error) => Err(error),
        }
    }
}

impl Duty {
    /// Whether the key was deleted since the duty was taken, as far as one can tell now.
    async fn is_revoked(&self) -> bool {
        if self.lead.as_ref().is_some_and(Lead::is_revoked) {
            return true;
        }
        match &self.lease {
            Some(lease) => lease.is_revoked().await,
            None => false,
        }
    }

    /// Those who wait in this process first: for the others the value is in the store. Answers whether the key was deleted
    /// since the duty was taken.
    pub(super) async fn fulfil(self, landing: Landing) -> bool {
        let mut is_revoked = false;
        if let Some(lead) = self.lead {
            is_revoked |= lead.is_revoked();
            lead.land(landing);
        }
        if let Some(lease) = self.lease {
            is_revoked |= lease.release().await;
        }
        is_revoked
    }

    /// The same where nothing is stored: the others need not wait for the next one.
    async fn fulfil_in_vain(self, landing: Landing) {
        if let Some(lead) = self.lead {
            lead.land(landing);
        }
        if let Some(lease) = self.lease {
            lease.release_in_vain().await;
        }
    }

    pub(super) async fn give_up(self) {
        if let Some(lease) = self.lease {
            lease.release().await;
        }
    }
}

/// Whether a write that failed like this may have taken effect.
pub(super) fn is_uncertain(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Io | ErrorKind::Protocol)
}
