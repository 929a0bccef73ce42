"""Which URLs are opened: a manifest or a checkpoint, from anywhere, can name any protocol of fsspec, and any host.

Two variables of the environment widen what is allowed: HARMONY_PROTOCOLS, names with commas between them, takes the
place of `PROTOCOLS`; HARMONY_PRIVATE=1 allows hosts of the own network.
"""

import ipaddress
import os
import socket
from urllib.parse import urlsplit

PROTOCOLS = ("https", "s3", "gs", "hf")  # which read from servers, and run nothing
VARIABLE, PRIVATE = "HARMONY_PROTOCOLS", "HARMONY_PRIVATE"


def require_allowed(url: str) -> None:
    """See that a URL may be opened.

    Redirections of an allowed server are followed wherever they lead.

    Args:
        url: with its protocol before ``://``.
    Raises:
        PermissionError: its protocol is not allowed, it is a chain of protocols, or its host belongs to the own
            network; the message says what would allow it.
    """
    allowed = tuple(os.environ.get(VARIABLE, ",".join(PROTOCOLS)).split(","))
    protocol = url.partition("://")[0]
    if "::" in protocol or "::" in url.partition("://")[2]:
        raise PermissionError(f"{url}: chains of protocols are not followed")
    if protocol not in allowed:
        raise PermissionError(
            f"{url}: {protocol}:// is none of {', '.join(f'{name}://' for name in allowed)}; "
            f"{VARIABLE}={','.join((*allowed, protocol))} allows it"
        )
    if protocol in ("http", "https") and os.environ.get(PRIVATE) != "1" and (address := _private(url)):
        raise PermissionError(f"{url}: {address} is an address of the own network; {PRIVATE}=1 allows it")


def _private(url: str) -> str | None:
    """An address of the host that is not of the public internet; a host that nobody knows has none."""
    try:
        parts = urlsplit(url)
        answers = socket.getaddrinfo(parts.hostname or "", parts.port or 443, proto=socket.IPPROTO_TCP)
    except (OSError, ValueError):
        return None
    addresses = [str(entry[4][0]).partition("%")[0] for entry in answers]
    return next((address for address in addresses if not ipaddress.ip_address(address).is_global), None)
