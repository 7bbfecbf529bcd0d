//! The TLS configuration: trusted authorities, this program's certificate, and the sessions that can be resumed.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption};
use rustls::client::{Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, NamedGroup, RootCertStore, SignatureScheme};

use super::TlsOptions;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::ProcessLocal;
use crate::telemetry;

/// The number of servers whose sessions are kept.
const SESSIONS: usize = 32;

/// The TLS configuration of a store. Cheap to clone, and immutable but for resumable sessions.
#[derive(Clone)]
pub(crate) struct Tls(Arc<Inner>);

struct Inner {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    accepts_any_certificate: bool,
    forgets_the_rest: bool,
    has_warned: AtomicBool,
}

impl Tls {
    /// Reads the root certificates, the certificate and the key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidConfig`] for an unusable file, [`ErrorKind::InvalidUrl`] for an invalid server name.
    pub(crate) fn new(options: TlsOptions) -> Result<Tls> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::with_source(ErrorKind::Other, "configuring TLS", error))?;
        let builder = if options.accept_any_certificate {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            builder.with_root_certificates(roots(options.ca.as_deref())?)
        };
        let mut config = match &options.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates("tls_cert", certificate)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("tls_key", key, "key", error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    let context = "the options tls_cert and tls_key are not a certificate and its key";
                    Error::with_source(ErrorKind::InvalidConfig, context, error)
                })?
            }
        };
        // A server on OpenSSL that verifies client certificates fails the handshake of a resumed session unless the
        // server has set a session id context. Memcached does not set one.
        config.resumption = match options.identity {
            Some(_) => Resumption::disabled(),
            None => Resumption::store(Arc::new(Sessions(ProcessLocal::new()))),
        };
        Ok(Tls(Arc::new(Inner {
            config: Arc::new(config),
            server_name: options.server_name.as_deref().map(name).transpose()?,
            accepts_any_certificate: options.accept_any_certificate,
            forgets_the_rest: options.forgets_the_rest,
            has_warned: AtomicBool::new(false),
        })))
    }

    /// Checks that a certificate can be for this server's name.
    pub(crate) fn check(&self, endpoint: &Endpoint) -> Result<()> {
        self.server_name(endpoint).map(|_| ())
    }

    /// The name that the server's certificate must be for.
    pub(super) fn server_name(&self, endpoint: &Endpoint) -> Result<ServerName<'static>> {
        match (&self.0.server_name, endpoint) {
            (Some(name), _) => Ok(name.clone()),
            (None, Endpoint::Tcp { host, .. }) => name(host),
            (None, Endpoint::Unix(path)) => name(&path.display().to_string()),
            (None, Endpoint::Named(server)) => name(server),
        }
    }

    pub(super) fn config(&self) -> &Arc<ClientConfig> {
        &self.0.config
    }

    pub(super) fn forgets_the_rest(&self) -> bool {
        self.0.forgets_the_rest
    }

    /// Logs a warning, once, if server certificates are not verified.
    pub(super) fn warn(&self, endpoint: &Endpoint) {
        if self.0.accepts_any_certificate && !self.0.has_warned.swap(true, Ordering::Relaxed) {
            telemetry::unverified(endpoint);
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Tls");
        if let Some(name) = &self.0.server_name {
            debug.field("server_name", &name.to_str());
        }
        debug.field("accepts_any_certificate", &self.0.accepts_any_certificate).finish()
    }
}

fn name(text: &str) -> Result<ServerName<'static>> {
    let name = ServerName::try_from(text.to_owned());
    name.map_err(|_| Error::new(ErrorKind::InvalidUrl, format!("{text:?} is no name that a certificate can be for")))
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates("tls_ca", path)? {
                roots.add(certificate).map_err(|error| unusable("tls_ca", path, "certificate", error))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (usable, _) = roots.add_parsable_certificates(found.certs);
            if usable == 0 {
                let context = "the system has no root certificates for TLS: the option tls_ca names a file with some";
                return Err(match found.errors.into_iter().next() {
                    Some(error) => Error::with_source(ErrorKind::InvalidConfig, context, error),
                    None => Error::new(ErrorKind::InvalidConfig, context),
                });
            }
        }
    }
    Ok(roots)
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unusable(option, path, "certificate", error))?;
    if certificates.is_empty() {
        let context = format!("the option {option}: there is no certificate in {}", path.display());
        return Err(Error::new(ErrorKind::InvalidConfig, context));
    }
    Ok(certificates)
}

fn unusable(option: &str, path: &Path, what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let context = format!("the option {option}: no {what} can be read from {}", path.display());
    Error::with_source(ErrorKind::InvalidConfig, context, error)
}

/// The resumable sessions of this process. The parent's sessions are never used, nor is the lock around them.
#[derive(Debug)]
struct Sessions(ProcessLocal<ClientSessionMemoryCache>);

impl Sessions {
    fn own(&self) -> &ClientSessionMemoryCache {
        self.0.get_or_init(|| ClientSessionMemoryCache::new(SESSIONS))
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.own().set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.own().kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.own().set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.own().tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.own().remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.own().insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.own().take_tls13_ticket(server)
    }
}

/// A verifier that accepts any certificate, if the server has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
