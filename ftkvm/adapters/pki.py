"""The cluster's certificates: one authority, held by the operator; a certificate per host and one per operator.

A host's certificate names the host and its addresses, and serves both sides of a connection, since agents call each
other. The OU of its subject is the holder's role (``ftkvm.core.trust``); the authority's revocation list names the
serial numbers that count no more.
"""

import datetime as dt
import ipaddress
import secrets
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ftkvm.adapters.local_file import replace_durably
from ftkvm.core.trust import ALARM_DAYS, Identity, Role

_CA_DAYS = 3650
_LEAF_DAYS = 1825
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

    @property
    def revoked(self) -> Path:
        """The revocation list, beside the authority's certificate; it need not be there."""
        return self.authority.with_name("crl.pem")

    def client_context(self, *, with_list: bool = True) -> ssl.SSLContext:
        """For connections we open: the peer must show a certificate of our authority with the name we expect.

        :raises OSError: a file is missing or no good
        """
        context = ssl.create_default_context(cafile=str(self.authority))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(str(self.certificate), str(self.key))
        if with_list and self.revoked.exists():
            context.load_verify_locations(cafile=str(self.revoked))
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        return context


class Authority:
    """The cluster's certificate authority: a key and a self-signed certificate."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, cluster: str) -> "Authority":
        """A new authority for a cluster."""
        key = new_key()
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

    def issue(self, name: str, addresses: tuple[str, ...] = (), *, role: Role, days: float = _LEAF_DAYS) -> KeyPair:
        """A certificate for a host (both sides of a connection) or an operator (client only), with its new key."""
        key = new_key()
        return KeyPair(self._certify(name, addresses, key.public_key(), role, days), _pem_key(key))

    def sign(self, request: bytes, name: str, addresses: tuple[str, ...], days: float = _LEAF_DAYS) -> bytes:
        """A host's certificate for the key of its signing request (PEM). Names and role are ours, not the request's.

        :raises ValueError: no request, not signed with its own key, or of another name
        """
        wanted = x509.load_pem_x509_csr(request)
        key = wanted.public_key()
        named = [attribute.value for attribute in wanted.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if not wanted.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey) or named != [name]:
            raise ValueError(f"not a signing request of {name}")
        return self._certify(name, addresses, key, Role.HOST, days)

    def _certify(
        self, name: str, addresses: tuple[str, ...], key: ec.EllipticCurvePublicKey, role: Role, days: float
    ) -> bytes:
        names = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        names.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role))
        builder = _builder(x509.Name(names), self._certificate.subject, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(authority=False), critical=True)
        server = role is Role.HOST
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if server:
            builder = builder.add_extension(_names(name, addresses), critical=False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def revoke(self, serials: Iterable[str], number: int) -> bytes:
        """The revocation list ``number`` with these serial numbers (hex), PEM.

        Its next update is as far as the authority's own end: a list that runs out would make everybody unverified on
        one day, which protects nobody. An old one played back is refused by its number instead. Its date counts up
        with its number, whatever the clock says: of several lists OpenSSL takes the one with the latest date.
        """
        now, dated = dt.datetime.now(dt.UTC), self._certificate.not_valid_before_utc + dt.timedelta(seconds=number)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(dated).next_update(self._certificate.not_valid_after_utc)
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        for serial in sorted(set(serials)):
            entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def still_good(
        self, certificate: bytes, name: str, addresses: tuple[str, ...], revoked: frozenset[str] = frozenset()
    ) -> bool:
        """Whether a host's certificate is ours, names exactly these, and is neither revoked nor about to expire."""
        try:
            found = x509.load_pem_x509_certificate(certificate)
            found.verify_directly_issued_by(self._certificate)
            names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            holder = identity_of(found)
        except Exception:  # anything that is not such a certificate is simply not good
            return False
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=ALARM_DAYS)
        good = names == _names(name, addresses) and found.not_valid_after_utc > soon
        return good and holder.serial not in revoked


def identity_of(certificate: x509.Certificate | bytes) -> Identity:
    """What a certificate (DER or PEM, if bytes) says of its holder; whether it counts is another question.

    One without a role is of the time before there were roles: a host's if it serves connections, else the operator's,
    who could do everything.

    :raises ValueError: no certificate, or a role nobody knows
    """
    if isinstance(certificate, bytes):
        pem = certificate.lstrip().startswith(b"-----")
        load = x509.load_pem_x509_certificate if pem else x509.load_der_x509_certificate
        certificate = load(certificate)
    name, role = (
        [str(each.value) for each in certificate.subject.get_attributes_for_oid(oid)]
        for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME)
    )
    return Identity(
        name[0] if name else "",
        Role(role[0]) if role else (Role.HOST if _serves(certificate) else Role.ADMINISTRATOR),
        f"{certificate.serial_number:x}",
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def _serves(certificate: x509.Certificate) -> bool:
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.SERVER_AUTH in uses


def read_revoked(content: bytes, authority: bytes) -> tuple[int, frozenset[str]]:
    """The number of a revocation list (PEM), and the serial numbers on it, hex.

    :raises ValueError: it is none, or not of this authority
    """
    issuer = x509.load_pem_x509_certificate(authority)
    key = issuer.public_key()
    found = x509.load_pem_x509_crl(content)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not found.is_signature_valid(key):
        raise ValueError("not a revocation list of this authority")
    number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    return number, frozenset(f"{entry.serial_number:x}" for entry in found)


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate (PEM), as ``openssl x509 -fingerprint -sha256`` shows it."""
    digest = x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()).hex().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key."""
    return ec.generate_private_key(ec.SECP256R1())


def signing_request(name: str) -> tuple[bytes, bytes]:
    """A new private key (PEM) and the request (PEM) to certify it for ``name``."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return _pem_key(key), request.public_bytes(serialization.Encoding.PEM)


def fits_key(certificate: bytes, key: bytes) -> bool:
    """Whether a certificate is for a private key (both PEM)."""
    public = serialization.load_pem_private_key(key, None).public_key()
    return bool(x509.load_pem_x509_certificate(certificate).public_key() == public)


def unusable(files: TlsFiles) -> tuple[Path, str] | None:
    """The first of one side's three files that is not what it should be, and why; None: they are good together."""
    try:
        for path in (files.authority, files.certificate):
            x509.load_pem_x509_certificate(_content(path))
        path = files.key
        if not fits_key(files.certificate.read_bytes(), _content(path)):
            return path, f"it is not the key of {files.certificate.name}"
    except (OSError, ValueError, TypeError) as error:
        return path, str(error) or type(error).__name__
    return None


def _content(path: Path) -> bytes:
    """:raises ValueError: nothing is in it, which the parsers tell in no word a human understands"""
    content = path.read_bytes()
    if not content.strip():
        raise ValueError("it is empty")
    return content


def issued_by(certificate: bytes, authority: bytes) -> bool:
    """Whether a certificate (PEM) is of this authority."""
    try:
        issuer = x509.load_pem_x509_certificate(authority)
        x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(issuer)
    except Exception:
        return False
    return True


def write_private(path: Path, content: bytes) -> None:
    """Write a file only its owner may read; it never exists with wider rights, and outlives a power loss."""
    replace_durably(path, content, 0o600)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + dt.timedelta(days=days)) - _BACKDATE)
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
