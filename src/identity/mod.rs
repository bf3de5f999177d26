//! Keys, certificates, tokens: who a node is, and how a peer's claim to be one is judged.
//!
//! A peer always proves possession of its key in the TLS handshake; what it may do with that
//! identity ([`PeerClass`]) is judged afterwards against the current view of the cluster.

mod ca;
mod cert;
mod data_dir;
mod given_ca;
mod keys;
pub mod recovery;
pub mod seal;
mod store;
pub mod succession;
pub mod token;
mod verifier;
pub mod warrant;

pub use ca::{CaError, ClusterCa, Issued};
pub use cert::{CertificateError, PeerCertificate, fingerprint};
pub use data_dir::{DataDir, DataDirError};
pub use given_ca::{CaFiles, GivenCaError};
pub use keys::{Identity, IdentityError, NodeKey, SealKey, node_id, verify};
pub use store::{ClusterRecord, Store, StoreError};
pub use token::{JoinToken, MAX_TOKEN_SEEDS, TokenError};
pub use verifier::{PeerClass, SERVER_NAME, TlsError, classify, client_tls, provider, server_tls};
