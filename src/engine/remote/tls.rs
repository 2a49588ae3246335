//! TLS: the trusted certificates, and the connector that adds TLS to a connection. ureq's own
//! connector would read the certificates again for each connection, and could not trust a
//! self-signed certificate.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, OtherError,
    RootCertStore, SignatureScheme, StreamOwned,
};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};

use crate::config::Trust;
use crate::error::{Error, Result};

/// The trusted certificates.
#[derive(Debug, Clone)]
pub(super) struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    store: RootCertStore,
    /// Where they come from, and how many there are.
    pub(super) source: String,
}

impl Roots {
    /// If `SSL_CERT_FILE` or `SSL_CERT_DIR` is set, reads only the certificates there, like OpenSSL
    /// and curl. Otherwise the system's; if it has none, the browsers' list, which is built in.
    ///
    /// # Errors
    /// Exit code 3 if these variables name nothing readable, or no certificate.
    pub(super) fn read(trust: &Trust) -> Result<Self> {
        if trust.file.is_some() || !trust.folders.is_empty() {
            return Self::named(trust);
        }
        let found = rustls_native_certs::load_native_certs().certs;
        let system = Self::new(found, "the system's store");
        if !system.store.is_empty() {
            return Ok(system);
        }
        let mut built_in = Self::new(
            Vec::new(),
            "the list built into flowbench (the system has none)",
        );
        built_in
            .store
            .extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        Ok(built_in)
    }

    fn named(trust: &Trust) -> Result<Self> {
        let hint = "SSL_CERT_FILE must be a PEM file of certificates (-----BEGIN CERTIFICATE-----), \
                    SSL_CERT_DIR a folder of such files; unset them to trust the system's store";
        let mut certificates = Vec::new();
        let mut places = Vec::new();
        let mut problem = None;
        let mut take = |variable: &str, path: &std::path::Path, is_file: bool| {
            let (file, folder) = (is_file.then_some(path), (!is_file).then_some(path));
            let found = rustls_native_certs::load_certs_from_paths(file, folder);
            let place = format!("{variable} ({})", path.display());
            if let Some(error) = found.errors.into_iter().next() {
                problem.get_or_insert(format!("{place}: {error}"));
            } else if found.certs.is_empty() {
                problem.get_or_insert(format!("{place}: no certificate in it"));
            }
            certificates.extend(found.certs);
            places.push(place);
        };
        if let Some(file) = &trust.file {
            take("SSL_CERT_FILE", file, true);
        }
        for folder in &trust.folders {
            take("SSL_CERT_DIR", folder, false);
        }
        let roots = Self::new(certificates, &places.join(" and "));
        match problem {
            // One usable source is enough. Other programs ignore the rest, too.
            _ if !roots.store.is_empty() => Ok(roots),
            problem => Err(Error::preflight(format!(
                "failed to read trusted certificates: {}",
                problem.unwrap_or_else(|| format!("{}: none is usable", roots.source))
            ))
            .hint(hint)),
        }
    }

    fn new(certificates: Vec<CertificateDer<'static>>, source: &str) -> Self {
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(certificates.iter().cloned());
        let source = match added {
            0 => source.to_owned(),
            1 => format!("{source}, 1 certificate"),
            _ => format!("{source}, {added} certificates"),
        };
        Self {
            certificates,
            store,
            source,
        }
    }

    /// The TLS configuration that trusts them. All connections share it, so that later ones resume
    /// the session of an earlier one.
    ///
    /// # Errors
    /// Exit code 3 if the TLS library rejects them.
    pub(super) fn client(self) -> Result<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let refuse = |error: Box<dyn std::error::Error + Send + Sync>| {
            Error::preflight("failed to set up TLS").caused_by(error)
        };
        let inner =
            WebPkiServerVerifier::builder_with_provider(Arc::new(self.store), provider.clone())
                .build()
                .map_err(|error| refuse(error.into()))?;
        let verifier = Verifier {
            inner,
            trusted: self.certificates,
        };
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refuse(error.into()))?
            // rustls calls every custom verifier dangerous; this one only adds to the default.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Arc::new(client))
    }
}

/// rustls's verification, which also accepts a self-signed certificate that is itself trusted.
/// `openssl req -x509` marks such a certificate as a CA's, and rustls accepts no CA certificate
/// from a server.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

/// Whether a certificate was rejected only because it is a CA's. In webpki's order, the encoding
/// and the dates were checked before.
pub(super) fn is_authority(error: &CertificateError) -> bool {
    let CertificateError::Other(OtherError(error)) = error else {
        return false;
    };
    matches!(
        error.downcast_ref::<webpki::Error>(),
        Some(webpki::Error::CaUsedAsEndEntity)
    )
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let inner = &self.inner;
        match inner.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(error))
                if is_authority(&error) && self.trusted.contains(certificate) =>
            {
                let parsed = ParsedCertificate::try_from(certificate)?;
                rustls::client::verify_server_name(&parsed, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Adds TLS to connections to `https` URLs.
#[derive(Debug, Clone)]
pub(super) struct TlsConnector {
    pub(super) client: Option<Arc<ClientConfig>>,
    /// Name of the proxy that plain requests go to over TLS.
    pub(super) proxy: Option<ServerName<'static>>,
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> std::result::Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else {
            return Ok(None);
        };
        let name = match &self.proxy {
            _ if transport.is_tls() => None,
            Some(name) => Some(name.clone()),
            None if details.needs_tls() => Some(server_name(details.uri.host())?),
            None => None,
        };
        let (Some(name), Some(client)) = (name, &self.client) else {
            return Ok(Some(Either::A(transport)));
        };
        let mut connection = ClientConnection::new(Arc::clone(client), name)?;
        let transport: Box<dyn Transport> = Box::new(transport);
        let mut socket = TransportAdapter::new(transport, details.current_time.clone());
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket).map_err(cut)?;
        let config = details.config;
        Ok(Some(Either::B(TlsTransport {
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            stream: StreamOwned::new(connection, socket),
        })))
    }
}

/// The connection closed during the TLS handshake: what plain servers do to a TLS client.
#[derive(Debug, thiserror::Error)]
#[error("closed during the TLS handshake ({0})")]
pub(super) struct HandshakeCut(io::Error);

fn cut(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ (io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe) => io::Error::new(kind, HandshakeCut(error)),
        _ => error,
    }
}

/// The host in the form used by certificates.
///
/// # Errors
/// No certificate can name the host.
pub(super) fn server_name(
    host: Option<&str>,
) -> std::result::Result<ServerName<'static>, ureq::Error> {
    let host = host.unwrap_or_default().trim_matches(['[', ']']);
    ServerName::try_from(host.trim_end_matches('.').to_owned())
        .map_err(|_| ureq::Error::Tls("a certificate cannot contain this host name"))
}

pub(super) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(
        &mut self,
        amount: usize,
        timeout: NextTimeout,
    ) -> std::result::Result<(), ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let output = &self.buffers.output()[..amount];
        self.stream.write_all(output)?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.stream.sock.set_timeout(timeout);
        let input = self.buffers.input_append_buf();
        let count = self.stream.read(input)?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTransport")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_certificates_are_errors_that_name_the_variable() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("ca.pem");
        let read = |file: Option<&std::path::Path>, folders: &[&std::path::Path]| {
            Roots::read(&Trust {
                file: file.map(Into::into),
                folders: folders.iter().map(Into::into).collect(),
            })
        };
        let missing = read(Some(&file), &[]).expect_err("not there");
        assert_eq!(missing.exit(), crate::error::Exit::Preflight);
        assert!(
            missing.report().contains("SSL_CERT_FILE ("),
            "{}",
            missing.report()
        );
        std::fs::write(&file, "no PEM").expect("writable");
        let empty = read(Some(&file), &[]).expect_err("no PEM");
        assert!(
            empty.report().contains("no certificate"),
            "{}",
            empty.report()
        );
        let empty = read(None, &[&folder.path().join("nowhere")]).expect_err("not there");
        assert!(
            empty.report().contains("SSL_CERT_DIR ("),
            "{}",
            empty.report()
        );

        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
        std::fs::write(&file, key.cert.pem()).expect("writable");
        let one = read(Some(&file), &[]).expect("one");
        assert!(
            one.source.ends_with("ca.pem), 1 certificate"),
            "{}",
            one.source
        );
        let both = read(Some(&folder.path().join("nowhere")), &[folder.path()]);
        assert!(both.expect("one is enough").client().is_ok());
        // Without the variables there are always some certificates.
        assert!(!read(None, &[]).expect("some").store.is_empty());
    }
}
