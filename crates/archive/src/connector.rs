//! HTTP for object stores, with hyper and rustls as elsewhere in litespend.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::TokioExecutor;
use object_store::client::{
    ClientConfigKey, ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpResponseBody, HttpService,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};

use crate::location::is_true;

/// Makes clients whose requests end after a time.
#[derive(Debug)]
pub(crate) struct Connector {
    /// Who may sign the store's certificate. `None` stands for the public authorities that are built in.
    pub(crate) authorities: Option<Arc<RootCertStore>>,
    /// Until the connection stands.
    pub(crate) connect_timeout: Duration,
    /// Until the head of the answer is there.
    pub(crate) answer_timeout: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(self.connect_timeout));
        let builder = match &self.authorities {
            Some(authorities) => {
                let config = ClientConfig::builder().with_root_certificates(Arc::clone(authorities));
                HttpsConnectorBuilder::new().with_tls_config(config.with_no_client_auth())
            }
            None => HttpsConnectorBuilder::new().with_webpki_roots(),
        };
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|text| is_true(&text));
        let builder = if plain { builder.https_or_http() } else { builder.https_only() };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(builder.enable_http1().wrap_connector(tcp));
        Ok(HttpClient::new(Service { client, answer_timeout: self.answer_timeout }))
    }
}

/// The authorities in a file of PEM certificates, or the reason why there are none.
pub(crate) fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let text = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let mut authorities = RootCertStore::empty();
    let mut unusable = 0;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|_| format!("{} is cut off or damaged", file.display()))?;
        // A bundle of many authorities may have some in forms of long ago.
        unusable += authorities.add_parsable_certificates([certificate]).1;
    }
    if authorities.is_empty() {
        let what = if unusable > 0 { "certificate that can be used" } else { "PEM certificate" };
        return Err(format!("{} contains no {what}", file.display()));
    }
    if unusable > 0 {
        tracing::warn!(file = %file.display(), unusable, "certificates of a bundle cannot be used");
    }
    Ok(authorities)
}

#[derive(Debug)]
struct Service {
    client: Client<HttpsConnector<TcpConnector>, HttpRequestBody>,
    answer_timeout: Duration,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = tokio::time::timeout(self.answer_timeout, self.client.request(request)).await;
        let answer = answer.map_err(|elapsed| HttpError::new(HttpErrorKind::Timeout, elapsed))?;
        let (head, body) = answer.map_err(request_error)?.into_parts();
        let body = HttpResponseBody::new(body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error)));
        Ok(HttpResponse::from_parts(head, body))
    }
}

/// The store has shown a certificate that is not accepted, and will not be at the next attempt.
#[derive(Debug, thiserror::Error)]
#[error("the store's certificate is not accepted: {0}")]
struct NotAccepted(CertificateError);

fn request_error(error: hyper_util::client::legacy::Error) -> HttpError {
    match certificate_error(&error) {
        // It ends by itself, when the store is given another certificate, or when the clocks agree.
        None
        | Some(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => {}
        Some(cause) => return HttpError::new(HttpErrorKind::Unknown, NotAccepted(cause.clone())),
    }
    // A request that was cut off may have been carried out: only a failed connection is surely without effect.
    let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
    HttpError::new(kind, error)
}

/// Why a certificate was not accepted, if that is the cause of an error.
fn certificate_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a CertificateError> {
    let mut next: Option<&'a (dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidCertificate(cause)) = error.downcast_ref::<rustls::Error>() {
            return Some(cause);
        }
        // The source of an I/O error is not the error that it wraps, but that one's source. So that one is looked at first.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Whether a store's certificate is the cause of an error, and another attempt is of no use.
pub(crate) fn is_certificate_refused(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<NotAccepted>() {
            return true;
        }
        next = error.source();
    }
    false
}
