//! TLS for `https://` addresses: rustls with ring, and the root certificates of the system (`SSL_CERT_FILE` adds to them). The
//! provider is named in this connection's configuration and never installed for the whole process, which may have another.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::transport::AddressError;

/// TLS to one host.
pub(crate) struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Trusts what the system trusts.
    pub(crate) fn of_system(host: &str) -> Result<Self, AddressError> {
        let mut roots = RootCertStore::empty();
        let loaded = rustls_native_certs::load_native_certs();
        let (added, _unusable) = roots.add_parsable_certificates(loaded.certs);
        if added == 0 {
            let reason = loaded.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
            return Err(AddressError::Certificates(reason));
        }
        Self::with_roots(host, roots)
    }

    fn with_roots(host: &str, roots: RootCertStore) -> Result<Self, AddressError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| AddressError::Form)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| AddressError::Certificates(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    pub(crate) async fn connect(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    #[tokio::test]
    async fn a_server_with_a_trusted_certificate_is_spoken_to_and_another_is_not() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                stream.write_all(b"well").await.unwrap();
                stream.shutdown().await.ok();
            }
        });

        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let tls = Tls::with_roots("localhost", roots.clone()).unwrap();
        let mut stream = tls.connect(TcpStream::connect(address).await.unwrap()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "well");

        let elsewhere = Tls::with_roots("example.com", roots).unwrap();
        let error = elsewhere.connect(TcpStream::connect(address).await.unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}
