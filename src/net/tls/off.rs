//! TLS without the feature `tls`: a [`Tls`] cannot be created.

use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};

use super::TlsOptions;
use crate::endpoint::Endpoint;
use crate::error::{Error, ErrorKind, Result};
use crate::execution::Execution;
use crate::net::stream::ByteStream;

#[derive(Clone, Debug)]
pub(crate) struct Tls(Infallible);

impl Tls {
    pub(crate) fn new(_: TlsOptions) -> Result<Tls> {
        let context = "this program was built without the feature \"tls\" of prefork-cache";
        Err(Error::new(ErrorKind::InvalidUrl, context))
    }

    pub(crate) fn check(&self, _: &Endpoint) -> Result<()> {
        match self.0 {}
    }
}

pub(in crate::net) async fn secure(
    tls: &Tls,
    _: Execution,
    _: &Endpoint,
    _: Box<dyn ByteStream>,
    _: Instant,
    _: Duration,
) -> Result<Box<dyn ByteStream>> {
    match tls.0 {}
}

pub(in crate::net) fn refused(_: &str, _: &Endpoint, _: &io::Error) -> Option<Error> {
    None
}
