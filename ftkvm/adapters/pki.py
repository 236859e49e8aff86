"""The cluster's certificates: one authority, held by the operator; a certificate per host and one per operator.

A host's certificate names the host and its addresses, and serves both sides of a connection, since agents call each
other. Whoever shows a certificate of this authority is let in; nobody else is.
"""

import datetime as dt
import ipaddress
import os
import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_DAYS = 3650
_LEAF_DAYS = 1825
_RENEW_DAYS = 60
_BACKDATE = dt.timedelta(days=1)  # hosts whose clock is behind must accept it as well


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class TlsFiles:
    """Where one side of mutual TLS finds its three files."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def in_directory(cls, directory: Path, name: str) -> "TlsFiles":
        return cls(directory / "ca.crt", directory / f"{name}.crt", directory / f"{name}.key")

    def client_context(self) -> ssl.SSLContext:
        """For connections we open: the peer must show a certificate of our authority with the name we expect."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(str(self.certificate), str(self.key))
        return context


class Authority:
    """The cluster's certificate authority: a key and a self-signed certificate."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, cluster: str) -> "Authority":
        """A new authority for a cluster."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ftkvm cluster {cluster} {secrets.token_hex(4)}")])
        builder = _builder(name, name, key.public_key(), _CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(authority=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, pair: KeyPair) -> "Authority":
        """The authority from its files' content.

        :raises ValueError: not a certificate and a key of ours
        """
        key = serialization.load_pem_private_key(pair.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key is not an elliptic curve key")
        return cls(x509.load_pem_x509_certificate(pair.certificate), key)

    @property
    def pair(self) -> KeyPair:
        return KeyPair(self.certificate, _pem_key(self._key))

    @property
    def certificate(self) -> bytes:
        """The authority's certificate, PEM: what every host and operator trusts."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, addresses: tuple[str, ...] = (), *, server: bool) -> KeyPair:
        """A certificate for a host (``server``; both sides of a connection) or an operator (client only)."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._certificate.subject, key.public_key(), _LEAF_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(authority=False), critical=True)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if server:
            builder = builder.add_extension(_names(name, addresses), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), _pem_key(key))

    def still_good(self, certificate: bytes, name: str, addresses: tuple[str, ...]) -> bool:
        """Whether a host's certificate is ours, names exactly these, and is not about to expire."""
        try:
            found = x509.load_pem_x509_certificate(certificate)
            found.verify_directly_issued_by(self._certificate)
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:  # anything that is not such a certificate is simply not good
            return False
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=_RENEW_DAYS)
        return names == _names(name, addresses) and found.not_valid_after_utc > soon


def issued_by(certificate: bytes, authority: bytes) -> bool:
    """Whether a certificate (PEM) is of this authority."""
    try:
        issuer = x509.load_pem_x509_certificate(authority)
        x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(issuer)
    except Exception:
        return False
    return True


def write_private(path: Path, content: bytes) -> None:
    """Write a file only its owner may read; it never exists with wider rights."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def new_beat_key() -> bytes:
    """The key with which the hosts of one cluster sign their beats: 32 random bytes, hex."""
    return secrets.token_hex(32).encode() + b"\n"


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _names(name: str, addresses: tuple[str, ...]) -> x509.SubjectAlternativeName:
    entries: list[x509.GeneralName] = [x509.DNSName(name)]
    entries += [x509.IPAddress(ipaddress.ip_address(address)) for address in sorted(set(addresses))]
    return x509.SubjectAlternativeName(entries)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
