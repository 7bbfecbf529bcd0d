//! Errors of TLS: why a handshake failed, or why a server refused this program's certificate.

use std::io;

use rustls::AlertDescription as Alert;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, Error as TlsError};

use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind};
use crate::net::io_errors::{io_error, is_stale};

/// The error of a failed handshake.
pub(super) fn handshake_failed(endpoint: &Endpoint, name: &ServerName<'_>, error: io::Error) -> Error {
    let context = format!("the TLS handshake with {endpoint}");
    if let Some(cause) = cause(&error) {
        return Error::with_source(ErrorKind::Tls, format!("{context}: {}", describe(cause, name)), cause.clone());
    }
    if is_stale(&error) {
        return io_error("shake hands with", endpoint, error);
    }
    match error.kind() {
        io::ErrorKind::TimedOut => {
            let context = format!("{context}: no answer in time (does the server speak TLS at this port?)");
            Error::new(ErrorKind::Timeout, context)
        }
        io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Connect, format!("{context}: {error}")),
        _ => Error::with_source(ErrorKind::Connect, context, error),
    }
}

/// The error of an exchange that failed because the server refused this program's certificate. In TLS 1.3 it does so
/// only after the handshake.
pub(in crate::net) fn refused(do_what: &str, endpoint: &Endpoint, error: &io::Error) -> Option<Error> {
    let cause = cause(error)?;
    let TlsError::AlertReceived(alert) = cause else { return None };
    let why = about_own_certificate(*alert)?;
    Some(Error::with_source(ErrorKind::Tls, format!("could not {do_what} {endpoint}: {why}"), cause.clone()))
}

fn cause(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

fn describe(error: &TlsError, name: &ServerName<'_>) -> String {
    match error {
        TlsError::InvalidCertificate(refused) => {
            let what = describe_certificate(refused);
            format!("the server's certificate {}", what.unwrap_or_else(|| about_name(refused, name)))
        }
        TlsError::AlertReceived(alert) => match about_own_certificate(*alert) {
            Some(why) => why.to_owned(),
            None if *alert == Alert::HandshakeFailure => {
                "the server refused it: it may want a certificate (tls_cert, tls_key)".to_owned()
            }
            None => "the server refused it".to_owned(),
        },
        TlsError::InvalidMessage(_) => "what the server answered is not TLS".to_owned(),
        TlsError::PeerIncompatible(_) => "the server supports none of our TLS versions or ciphers".to_owned(),
        _ => "it failed".to_owned(),
    }
}

fn describe_certificate(error: &CertificateError) -> Option<String> {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, Revoked, UnknownIssuer,
    };
    let what = match error {
        Expired | ExpiredContext { .. } => "has expired",
        NotValidYet | NotValidYetContext { .. } => "is not valid yet",
        Revoked => "was revoked",
        // It was signed by another authority of the same name.
        BadSignature => "is not signed by the authority that is trusted here (tls_ca)",
        UnknownIssuer => "is not from an authority that is trusted here (tls_ca)",
        _ => return None,
    };
    Some(what.to_owned())
}

fn about_name(error: &CertificateError, name: &ServerName<'_>) -> String {
    match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("is not for the name {:?} (tls_server_name)", name.to_str())
        }
        _ => "cannot be trusted".to_owned(),
    }
}

fn about_own_certificate(alert: Alert) -> Option<&'static str> {
    Some(match alert {
        Alert::CertificateRequired => "the server wants a certificate (tls_cert, tls_key)",
        Alert::UnknownCA | Alert::DecryptError => {
            "the server does not trust the authority of our certificate (tls_cert)"
        }
        Alert::CertificateExpired => "the server reports that our certificate has expired (tls_cert)",
        Alert::CertificateRevoked => "the server reports that our certificate was revoked (tls_cert)",
        Alert::BadCertificate | Alert::UnsupportedCertificate | Alert::CertificateUnknown | Alert::AccessDenied => {
            "the server refuses our certificate (tls_cert)"
        }
        _ => return None,
    })
}
