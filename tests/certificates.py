"""Certificates for the tests of TLS: by themselves, or by a private authority that the test makes as well."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """Vouches for certificates; its own is `certificate`."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _named("a private authority")
        self.certificate = (
            _dated(self.name, self.name, self.key, days=30)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )


def make(
    folder: Path, *names: str, days: float = 10, by: Authority | None = None, whole: bool = True
) -> x509.Certificate:
    """cert.pem and key.pem in `folder`, for these hosts and addresses, good for so many days (below 0: expired); with
    `whole` the authority's own certificate stands in cert.pem as well."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _named(names[0] if names else "nobody")
    wanted: list[Any] = []
    for name in names:
        try:
            wanted.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            wanted.append(x509.DNSName(name))
    made = _dated(subject, by.name if by else subject, key, days=days)
    made = made.add_extension(x509.SubjectAlternativeName(wanted), critical=False)
    signed = made.sign(by.key if by else key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(exist_ok=True)
    (folder / "key.pem").write_bytes(private)
    (folder / "cert.pem").write_bytes(pem(signed) + (pem(by.certificate) if by and whole else b""))
    return signed


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _dated(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=20))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
