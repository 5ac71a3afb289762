//! TLS 1.3 between two keys, the same for every transport that proves who its peers are: raw public keys both ways
//! (RFC 7250), ed25519 only, no certificates, no names, no tickets, no early data.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};

use crate::{allowed::Allowed, events::DownReason, identity::PeerId, secret_key::SecretKey};

/// What both ends must name.
const PROTOCOL: &[u8] = b"ropewalk/1";

/// What stands before an ed25519 public key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// One for all, never the process's default: what another library sets there changes nothing here.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// For one who dials this peer and no other.
pub(super) fn client(key: &SecretKey, peer: PeerId) -> Result<ClientConfig, rustls::Error> {
    let resolver = AlwaysResolvesClientRawPublicKeys::new(certified(key)?);
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Expects(peer)))
        .with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![PROTOCOL.into()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// For one who listens.
pub(super) fn server(key: &SecretKey, allowed: Allowed) -> Result<ServerConfig, rustls::Error> {
    let resolver = AlwaysResolvesServerRawPublicKeys::new(certified(key)?);
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Admits(allowed)))
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![PROTOCOL.into()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// rustls wants a name; nobody is told it, for there is no SNI, and nobody looks at it.
pub(super) fn no_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from(std::net::Ipv4Addr::UNSPECIFIED).into())
}

fn certified(key: &SecretKey) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let signing = PROVIDER.key_provider.load_private_key(PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec()).into())?;
    Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki(&key.id()))], signing)))
}

fn spki(id: &PeerId) -> Vec<u8> {
    [&SPKI[..], id.as_bytes()].concat()
}

fn id_in(certificate: &CertificateDer<'_>) -> Option<PeerId> {
    let key = certificate.strip_prefix(&SPKI)?;
    Some(PeerId::from_bytes(key.try_into().ok()?))
}

/// Who is at the other end, once the handshake is done.
pub(super) fn id_of(connection: &rustls::CommonState) -> Result<PeerId, DownReason> {
    if connection.alpn_protocol() != Some(PROTOCOL) {
        return Err(DownReason::Insecure("the peer speaks another protocol".into()));
    }
    let id = connection.peer_certificates().and_then(|certificates| id_in(certificates.first()?));
    id.ok_or_else(|| DownReason::Insecure("the peer has shown no key".into()))
}

/// What an error of TLS means for a link.
pub(crate) fn reason(error: &rustls::Error) -> DownReason {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => match why.downcast_ref() {
            Some(Refused::NotAllowed(id)) => DownReason::NotAllowed { id: *id },
            Some(Refused::OtherKey(id)) => DownReason::OtherKey { id: *id },
            None => DownReason::Insecure(error.to_string()),
        },
        rustls::Error::AlertReceived(AlertDescription::CertificateUnknown | AlertDescription::AccessDenied) => {
            DownReason::Denied
        }
        _ => DownReason::Insecure(error.to_string()),
    }
}

/// Why a key is refused.
#[derive(Debug)]
enum Refused {
    NotAllowed(PeerId),
    OtherKey(PeerId),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllowed(id) => write!(f, "{id} is not allowed"),
            Self::OtherKey(id) => write!(f, "it is {id}"),
        }
    }
}

impl std::error::Error for Refused {}

impl From<Refused> for rustls::Error {
    fn from(refused: Refused) -> Self {
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }
}

fn key_of(certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<PeerId, rustls::Error> {
    match id_in(certificate) {
        Some(id) if others.is_empty() => Ok(id),
        _ => Err(CertificateError::BadEncoding.into()),
    }
}

fn is_signed(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    if signature.scheme != SignatureScheme::ED25519 {
        return Err(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let key = SubjectPublicKeyInfoDer::from(certificate.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, signature, &PROVIDER.signature_verification_algorithms)
}

fn not_spoken() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".into())
}

/// Exactly the key that was dialled.
#[derive(Debug)]
struct Expects(PeerId);

impl ServerCertVerifier for Expects {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match key_of(certificate, others)? {
            id if id == self.0 => Ok(ServerCertVerified::assertion()),
            id => Err(Refused::OtherKey(id).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(not_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        is_signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The keys that are allowed. This is the early no, so that the peer hears why; whoever is let in is looked at again when
/// the link joins its socket, for the list may have changed meanwhile.
#[derive(Debug)]
struct Admits(Allowed);

impl ClientCertVerifier for Admits {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match key_of(certificate, others)? {
            id if self.0.admits(&id) => Ok(ClientCertVerified::assertion()),
            id => Err(Refused::NotAllowed(id).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(not_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        is_signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
