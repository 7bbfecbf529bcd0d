//! Certificates for tests.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};

use super::servers::Directory;

/// The names of a server on the loopback.
pub const LOCAL: [&str; 2] = ["localhost", "127.0.0.1"];

/// An authority that issues certificates. Its files live as long as it does.
pub struct Authority {
    directory: Directory,
    issuer: CertifiedIssuer<'static, KeyPair>,
    ca: PathBuf,
}

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Now,
    Past,
}

impl Authority {
    pub fn new() -> Authority {
        let directory = Directory::make();
        let mut params = params(&[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Clients tell authorities apart by their names, so each needs its own.
        params.distinguished_name.push(DnType::CommonName, directory.path().display().to_string());
        let issuer = CertifiedIssuer::self_signed(params, key()).expect("a self-signed certificate");
        let ca = directory.path().join("ca.pem");
        write(&ca, &issuer.pem());
        Authority { directory, issuer, ca }
    }

    /// The file with the authority's own certificate.
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// Issues a certificate for these names, in files with this name.
    pub fn issue(&self, file: &str, names: &[&str], validity: Validity) -> Identity {
        let mut params = params(names);
        params.distinguished_name.push(DnType::CommonName, file);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if validity == Validity::Past {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let key = key();
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let directory = self.directory.path();
        let identity =
            Identity { certificate: directory.join(format!("{file}.pem")), key: directory.join(format!("{file}.key")) };
        write(&identity.certificate, &certificate.pem());
        write(&identity.key, &key.serialize_pem());
        identity
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    CertificateParams::new(names).expect("names for a certificate")
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("writing {}: {error}", path.display()));
}
