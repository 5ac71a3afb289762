//! A peer that does TLS by hand, and may lie.

use std::sync::Arc;

use ropewalk::SecretKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

/// What Ropewalk peers name in the handshake.
pub(crate) const PROTOCOL: &[u8] = b"ropewalk/1";

pub(crate) fn name() -> ServerName<'static> {
    "peer.invalid".try_into().expect("a name")
}

/// What proves that we have this key.
fn certified(key: &SecretKey) -> CertifiedKey {
    let key = PrivateKeyDer::from_pem_slice(key.to_pem().as_bytes()).expect("a key in PEM");
    let signing = ring::sign::any_eddsa_type(&match key {
        PrivateKeyDer::Pkcs8(key) => key,
        other => panic!("{other:?}"),
    });
    let signing = signing.expect("ed25519");
    let public = rustls::sign::SigningKey::public_key(&*signing).expect("its public half");
    CertifiedKey::new(vec![CertificateDer::from(public.as_ref().to_vec())], signing)
}

/// The public key of one, and signatures of another.
fn impostor(shown: &SecretKey, signs: &SecretKey) -> Arc<CertifiedKey> {
    let CertifiedKey { cert, .. } = certified(shown);
    Arc::new(CertifiedKey::new(cert, certified(signs).key))
}

/// As Ropewalk does it, but whoever is at the other end will do.
pub(crate) fn client(key: &SecretKey) -> ClientConfig {
    client_that_signs_as(key, key)
}

/// The same for QUIC.
pub(crate) fn quic(key: &SecretKey) -> quinn::ClientConfig {
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(client(key)).expect("a configuration");
    quinn::ClientConfig::new(Arc::new(tls))
}

/// One that shows a key it does not have.
pub(crate) fn client_that_signs_as(shown: &SecretKey, signs: &SecretKey) -> ClientConfig {
    let resolver = AlwaysResolvesClientRawPublicKeys::new(impostor(shown, signs));
    let mut config = verified().with_client_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![PROTOCOL.into()];
    config.resumption = Resumption::disabled();
    config
}

/// A QUIC listener with this key, for whoever comes.
pub(crate) fn quic_server(key: &SecretKey) -> quinn::ServerConfig {
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(server_that_signs_as(key, key));
    quinn::ServerConfig::with_crypto(Arc::new(tls.expect("a configuration")))
}

/// A listener that shows a key it does not have.
pub(crate) fn server_that_signs_as(shown: &SecretKey, signs: &SecretKey) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(Arc::new(Believes))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(impostor(shown, signs))));
    config.alpn_protocols = vec![PROTOCOL.into()];
    config
}

/// A client that believes whatever it is shown.
pub(crate) fn verified() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believes))
}

/// What it believes as a client and as a listener; rustls asks for it in two traits.
macro_rules! believes {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

#[derive(Debug)]
struct Believes;

impl ServerCertVerifier for Believes {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    believes!();
}

impl ClientCertVerifier for Believes {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    believes!();
}
