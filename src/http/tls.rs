//! TLS of the edge: whose certificate it shows, and how that changes while connections stay.

use std::{
    convert::Infallible,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ring::digest::{self, SHA256};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::identity::{TlsError, provider};

/// How often own files are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Longest file that is taken for a certificate chain or a key.
const MAX_FILE: usize = 256 * 1024;
/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A certificate or key of one's own that cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFileError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// A certificate chain and its key in two files.
pub struct CertificateFiles {
    chain: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for CertificateFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateFiles").field("chain", &self.chain).finish_non_exhaustive()
    }
}

impl CertificateFiles {
    /// Reads both.
    ///
    /// # Errors
    /// They cannot be read, are no PEM, or are not of each other.
    pub fn open(chain: &Path, key: &Path) -> Result<Arc<Self>, CertificateFileError> {
        let current = RwLock::new(Arc::new(load(chain, key)?));
        Ok(Arc::new(Self { chain: chain.to_owned(), key: key.to_owned(), current }))
    }

    /// Shows from the next handshake on what the files hold now. Connections stay as they are; so
    /// does the certificate when the new files are of no use.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn reload(&self) -> Result<(), CertificateFileError> {
        let loaded = Arc::new(load(&self.chain, &self.key)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// Reloads whenever the files have changed. Runs for ever.
    async fn follow(&self) -> Infallible {
        let mut seen = self.digest().await;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.digest().await;
            if now == seen {
                continue;
            }
            // Of two files the first may be new and the second not yet: the next change tries again.
            seen = now;
            match self.reload() {
                Ok(()) => {
                    tracing::info!(chain = %self.chain.display(), "the HTTP edge shows a new certificate")
                }
                Err(error) => {
                    tracing::warn!(%error, "the HTTP certificate has changed and is of no use; the old one stays");
                }
            }
        }
    }

    /// A hash of both; what cannot be read counts as empty.
    async fn digest(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&SHA256);
        for path in [&self.chain, &self.key] {
            let bytes = tokio::fs::read(path).await.unwrap_or_default();
            context.update(&bytes.len().to_le_bytes());
            context.update(&bytes);
        }
        context.finish().as_ref().to_vec()
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn load(chain: &Path, key: &Path) -> Result<CertifiedKey, CertificateFileError> {
    let wrong = |path: &Path, reason: String| CertificateFileError::Content { path: path.to_owned(), reason };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(chain)?)
        .collect::<Result<_, _>>()
        .map_err(|e| wrong(chain, format!("not a certificate chain in PEM: {e}")))?;
    if certificates.is_empty() {
        return Err(wrong(chain, "there is no certificate in it (PEM)".to_owned()));
    }
    let secret = zeroize::Zeroizing::new(read(key)?);
    let secret = PrivateKeyDer::from_pem_slice(&secret)
        .map_err(|_| wrong(key, "there is no private key in it (PEM, without a password)".to_owned()))?;
    CertifiedKey::from_der(certificates, secret, &provider())
        .map_err(|e| wrong(key, format!("not the key of {}: {e}", chain.display())))
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateFileError> {
    let failed = |error| CertificateFileError::Read { path: path.to_owned(), error };
    let bytes = std::fs::read(path).map_err(failed)?;
    if bytes.len() > MAX_FILE {
        let reason = format!("{} bytes are too many for a certificate or a key", bytes.len());
        return Err(CertificateFileError::Content { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// TLS 1.3 with a certificate, HTTP/2 and HTTP/1.1 by ALPN.
#[derive(Clone)]
pub struct EdgeTls {
    acceptor: TlsAcceptor,
    files: Option<Arc<CertificateFiles>>,
}

impl fmt::Debug for EdgeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl EdgeTls {
    /// As the node: with the certificate of the mesh, always the newest.
    ///
    /// # Errors
    /// None that a configuration can cause.
    pub fn of_node(certificate: Arc<dyn ResolvesServerCert>) -> Result<Self, TlsError> {
        Ok(Self { acceptor: acceptor(certificate)?, files: None })
    }

    /// With a certificate of one's own.
    ///
    /// # Errors
    /// None that a configuration can cause.
    pub fn of_files(files: Arc<CertificateFiles>) -> Result<Self, TlsError> {
        Ok(Self { acceptor: acceptor(files.clone())?, files: Some(files) })
    }

    /// Keeps the certificate as new as its files. Runs for ever.
    pub(super) async fn follow(&self) -> Infallible {
        match &self.files {
            Some(files) => files.follow().await,
            None => std::future::pending().await,
        }
    }

    /// The encrypted stream, and whether HTTP/2 was agreed on.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<(TlsStream<S>, bool)> {
        let stream = timeout(HANDSHAKE, self.acceptor.accept(stream)).await??;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((stream, http2))
    }
}

fn acceptor(certificate: Arc<dyn ResolvesServerCert>) -> Result<TlsAcceptor, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    // What a client may send before the handshake is done could be sent again by somebody else.
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
