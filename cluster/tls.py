"""The gateway's certificate, to whoever asks the gateway: what is trusted, for which name it is checked, and what to
write where it is not good. A certificate is never taken unchecked."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import InputError

_EXPIRED, _EARLY = 10, 9
_OTHER_NAME = (62, 64)  # of a host, of an address


def trusting(listen: Mapping[str, Any]) -> ssl.SSLContext:
    """Trusts the system's list (SSL_CERT_FILE's, where that is set), and what stands in `listen`'s own certificate file
    where this machine has it. Names are checked all the same. Raises InputError where the file holds none."""
    context = ssl.create_default_context()
    file = listen.get("certificate")
    if file and Path(file).is_file():
        try:
            context.load_verify_locations(cafile=file)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"http.certificate: {file}: no certificate can be read from it: {error}") from None
        # A certificate in the file is enough, be the one that vouches for it there or not.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def name(listen: Mapping[str, Any], url: str) -> str:
    """What the certificate must be for where the gateway is asked at `url`: http.name, or the address itself."""
    return listen.get("name") or urlsplit(url).hostname or ""


def check(listen: Mapping[str, Any], host: str = "") -> None:
    """Show the certificate to a client of ours, as the gateway would: does the key fit, is it valid now, and is it for
    `http.name`, or `host` (left out: any)? Raises InputError with what to write; nothing is done without TLS."""
    if not listen.get("certificate"):
        return
    file, wanted = listen["certificate"], listen.get("name") or host
    server = _server(listen)
    client = trusting(listen)
    client.check_hostname = False
    shown: dict[str, Any] = {}
    try:
        shown = _shake(server, client, None)
        if wanted:
            client.check_hostname = True
            _shake(server, client, wanted)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code not in _OTHER_NAME:
            raise InputError(f"http.certificate: {file}: {_words(error, wanted)}") from None
        names = [value for _, value in shown.get("subjectAltName", ())]
        names = names or [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
        raise InputError(
            f"http.certificate: {file} is for {', '.join(names) or 'no name'}, and not for {wanted}, at which clients "
            f"would ask; write one of its names as http.name in cluster.yaml, or a certificate for {wanted} as well"
        ) from None


def needed(listen: Mapping[str, Any], url: str) -> str:
    """The file that clients on this machine must be told of, as SSL_CERT_FILE or curl's --cacert; empty without TLS,
    where the system's list vouches for the certificate, and where it is not here to be looked at."""
    with contextlib.suppress(InputError):
        if listen.get("certificate"):
            try:
                _shake(_server(listen), ssl.create_default_context(), name(listen, url))
            except ssl.SSLCertVerificationError:
                return listen["certificate"]
    return ""


def fault(error: BaseException, url: str, wanted: str) -> str:
    """What was wrong with the certificate that a server at `url` showed, and what to write; empty where an error is
    about something else."""
    at: BaseException | None = error
    while at is not None and not isinstance(at, ssl.SSLCertVerificationError):
        at = at.__cause__ or at.__context__
    return f"{url}: {_words(at, wanted)}" if at is not None else ""


def _words(error: ssl.SSLCertVerificationError, wanted: str) -> str:
    if error.verify_code == _EXPIRED:
        return (
            "the certificate has expired; write a new one to the files of http.certificate and http.key: a gateway "
            "that runs takes it up by itself"
        )
    if error.verify_code == _EARLY:
        return "the certificate is not valid yet; is this machine's clock right?"
    if error.verify_code in _OTHER_NAME:
        return (
            f"the certificate is not for {wanted}; in the cluster's cluster.yaml write the name that it is for as "
            f"http.name, or a certificate for {wanted}"
        )
    return (
        f"nobody who is trusted here vouches for the certificate ({error.verify_message}); write the file with who "
        "does as http.certificate in cluster.yaml, or set SSL_CERT_FILE to it"
    )


def _server(listen: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(listen["certificate"], listen["key"])
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"http.certificate: {listen['certificate']} and http.key {listen['key']} cannot be read, or do not fit "
            f"together: {error}"
        ) from None
    return context


def _shake(server: ssl.SSLContext, client: ssl.SSLContext, wanted: str | None) -> dict[str, Any]:
    """A handshake between the two in memory; the certificate as the client saw it. Raises SSLCertVerificationError."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(down, up, server_hostname=wanted)
    answering = server.wrap_bio(up, down, server_side=True)
    for side in (asking, answering, asking):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    return asking.getpeercert() or {}
