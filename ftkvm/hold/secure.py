"""TLS with a pre-shared key towards the secondary's QEMU (``tls-creds-psk``): the proxy fetches frames as a client."""

import socket
import ssl
import sys


def secured(sock: socket.socket, key: str) -> socket.socket:
    """``sock``, connected and with a time-out, as a TLS connection: the other side has shown that it knows the key.

    TLS 1.3, as QEMU speaks it. safety: no certificate is looked at, for there is none: who does not have the key, which
    only the two agents of this epoch were given, cannot end the handshake.

    :param key: as in QEMU's file: its name, a colon, the key in hexadecimal
    :raises OSError: the handshake failed or took too long (``ssl.SSLError`` is one); Python is too old
    """
    if sys.version_info < (3, 13):
        raise OSError("encrypted channels need Python 3.13 on the host")
    name, _colon, secret = key.strip().partition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_psk_client_callback(lambda _hint: (name, bytes.fromhex(secret)))
    return context.wrap_socket(sock)
