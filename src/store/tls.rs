//! The TLS options of a URL.

use super::url::{StoreUrl, invalid};
use crate::endpoint::Endpoint;
use crate::error::Result;
use crate::net::{Tls, TlsOptions};

impl StoreUrl {
    /// Takes the TLS options, and reads the files that they name. Returns `None` if connections are not encrypted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for options that contradict each other, and for any TLS
    /// option of a URL without TLS; and the errors of [`Tls::new`] and [`Tls::check`].
    pub(super) fn take_tls(&mut self, is_encrypted: bool, endpoints: &[Endpoint]) -> Result<Option<Tls>> {
        let ca = self.options.take_text("tls_ca");
        let certificate = self.options.take_text("tls_cert");
        let key = self.options.take_text("tls_key");
        let server_name = self.options.take_text("tls_server_name");
        let accepts_any = self.options.take_bool("tls_accept_any_certificate")?;
        if !is_encrypted {
            let given = [
                ("tls_ca", ca.is_some()),
                ("tls_cert", certificate.is_some()),
                ("tls_key", key.is_some()),
                ("tls_server_name", server_name.is_some()),
                ("tls_accept_any_certificate", accepts_any.is_some()),
            ];
            return match given.iter().find(|(_, is_given)| *is_given) {
                Some((option, _)) => {
                    Err(invalid(format!("the option {option} is given, and {} has no TLS", self.scheme)))
                }
                None => Ok(None),
            };
        }
        let accept_any_certificate = accepts_any == Some(true);
        if accept_any_certificate && ca.is_some() {
            return Err(invalid("tls_ca is given, and tls_accept_any_certificate=true, which looks at no authority"));
        }
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            (Some(_), None) => return Err(invalid("tls_cert is given without tls_key")),
            (None, Some(_)) => return Err(invalid("tls_key is given without tls_cert")),
        };
        let tls = Tls::new(TlsOptions {
            ca: ca.map(Into::into),
            identity,
            server_name,
            accept_any_certificate,
            forgets_the_rest: self.scheme == "memcacheds",
        })?;
        endpoints.iter().try_for_each(|endpoint| tls.check(endpoint))?;
        Ok(Some(tls))
    }
}
