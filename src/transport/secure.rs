//! TLS 1.3 between two keys, the same for every transport that proves who its peers are: raw public keys both ways
//! (RFC 7250), ed25519 only, no certificates, no names, no tickets, no early data.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, LazyLock, OnceLock},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, InvalidMessage,
    OtherError, ServerConfig, SignatureScheme,
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

use super::{Address, tcp};
use crate::{
    allowed::Allowed, error::AddressError, events::DownReason, identity::PeerId, options::Options,
    secret_key::SecretKey,
};

/// What both ends must name.
const PROTOCOL: &[u8] = b"ropewalk/1";

/// What stands before an ed25519 public key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// One for all, never the process's default: what another library sets there changes nothing here.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// Whose key was found where another was expected. QUIC does not hand on more of why a handshake failed than a text.
pub(super) type Found = Arc<OnceLock<PeerId>>;

/// For one who dials this peer and no other.
pub(super) fn client(key: &SecretKey, peer: PeerId, found: Found) -> Result<ClientConfig, rustls::Error> {
    let resolver = AlwaysResolvesClientRawPublicKeys::new(certified(key)?);
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Expects { peer, found }))
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
#[cfg(feature = "tls")]
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

/// Who is at the other end, once the handshake is done: from the protocol that was agreed on and what the peer has shown.
pub(super) fn id_shown(protocol: Option<&[u8]>, keys: Option<&[CertificateDer<'_>]>) -> Result<PeerId, DownReason> {
    if protocol != Some(PROTOCOL) {
        return Err(DownReason::Insecure("the peer speaks another protocol".into()));
    }
    let id = keys.and_then(|keys| id_in(keys.first()?));
    id.ok_or_else(|| DownReason::Insecure("the peer has shown no key".into()))
}

/// Whether an address of a scheme that proves who peers are may be used so.
pub(super) fn check(address: &Address, listen: bool, options: &Options) -> Result<(), AddressError> {
    let (id, rest) = parse(address)?;
    tcp::check(address, rest, listen)?;
    let Some(key) = &options.key else { return Err(AddressError::NoKey { address: address.to_string() }) };
    match id {
        None if !listen => Err(address.malformed("it needs the id of the peer, as in PEERID@host:7000")),
        Some(id) if listen && id != key.id() => Err(address.malformed("the id is not that of the socket's key")),
        _ if listen && !options.allowed.is_said() => Err(AddressError::NobodyAllowed { address: address.to_string() }),
        _ => Ok(()),
    }
}

/// The peer's id, if there is one, and host and port.
pub(super) fn parse(address: &Address) -> Result<(Option<PeerId>, &str), AddressError> {
    match address.rest().split_once('@') {
        None => Ok((None, address.rest())),
        Some((id, rest)) => match id.parse() {
            Ok(id) => Ok((Some(id), rest)),
            Err(_) => {
                Err(address.malformed("what stands before the @ is not a peer id, which is 52 characters of base32"))
            }
        },
    }
}

/// Our key, and the host and port to listen on.
pub(super) fn listening<'a>(
    address: &'a Address,
    options: &'a Options,
) -> Result<(&'a SecretKey, &'a str), AddressError> {
    let (_, rest) = parse(address)?;
    let key = options.key.as_ref().ok_or_else(|| AddressError::NoKey { address: address.to_string() })?;
    Ok((key, rest))
}

/// Where we listen, with our id, for that is what others dial.
pub(super) fn bound(address: &Address, key: &SecretKey, local: SocketAddr) -> Address {
    Address { rest: format!("{}@{local}", key.id()), ..address.clone() }
}

/// Whom to dial, our key, and the host and port.
pub(super) fn dialling<'a>(address: &'a Address, options: &'a Options) -> io::Result<(PeerId, &'a SecretKey, &'a str)> {
    let (id, rest) = parse(address).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    // Both were looked at when the address was given.
    let (Some(id), Some(key)) = (id, &options.key) else { return Err(io::ErrorKind::InvalidInput.into()) };
    Ok((id, key, rest))
}

/// What a broken stream means for a link, if that is more than an error of the system.
pub(crate) fn reason_in(error: &io::Error) -> Option<DownReason> {
    let inner = error.get_ref()?;
    #[cfg(feature = "quic")]
    {
        let read = inner.downcast_ref().and_then(|error| match error {
            quinn::ReadError::ConnectionLost(error) => Some(error),
            _ => None,
        });
        let written = inner.downcast_ref().and_then(|error| match error {
            quinn::WriteError::ConnectionLost(error) => Some(error),
            _ => None,
        });
        if let Some(lost) = read.or(written) {
            return Some(super::quic::reason(lost));
        }
    }
    inner.downcast_ref().map(reason)
}

/// What an error of TLS means for a link.
fn reason(error: &rustls::Error) -> DownReason {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => match why.downcast_ref() {
            Some(Refused::NotAllowed(id)) => DownReason::NotAllowed { id: *id },
            Some(Refused::OtherKey(id)) => DownReason::OtherKey { id: *id },
            None => DownReason::Insecure(error.to_string()),
        },
        rustls::Error::AlertReceived(AlertDescription::CertificateUnknown | AlertDescription::AccessDenied) => {
            DownReason::Denied
        }
        // What comes first is no record of TLS at all.
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            DownReason::Insecure("the peer does not speak TLS; perhaps its address is a tcp:// one".into())
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

/// What both verifiers answer alike; rustls asks for it in two traits.
macro_rules! verifies_raw_ed25519 {
    () => {
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
    };
}

/// Exactly the key that was dialled.
#[derive(Debug)]
struct Expects {
    peer: PeerId,
    found: Found,
}

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
            id if id == self.peer => Ok(ServerCertVerified::assertion()),
            id => {
                self.found.get_or_init(|| id);
                Err(Refused::OtherKey(id).into())
            }
        }
    }

    verifies_raw_ed25519!();
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

    verifies_raw_ed25519!();
}
