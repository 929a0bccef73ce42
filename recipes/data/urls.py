"""Which URLs may be opened: a manifest or a checkpoint from anywhere can name any protocol of fsspec, and any host.

Two variables of the environment allow more: HARMONY_PROTOCOLS, names separated by commas, replaces `PROTOCOLS`;
HARMONY_PRIVATE=1 allows hosts of the private network.
"""

import ipaddress
import os
import socket
from urllib.parse import urlsplit

PROTOCOLS = ("https", "s3", "gs", "hf")  # which read from servers, and run nothing
VARIABLE, PRIVATE = "HARMONY_PROTOCOLS", "HARMONY_PRIVATE"


def require_allowed(url: str) -> None:
    """Raises a PermissionError unless a URL may be opened; the message says what would allow it.

    Redirections of an allowed server are followed wherever they lead.
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
        raise PermissionError(f"{url}: {address} is an address of the private network; {PRIVATE}=1 allows it")


def _private(url: str) -> str | None:
    """An address of the host outside the public internet; None: it has none, or is unknown."""
    try:
        parts = urlsplit(url)
        answers = socket.getaddrinfo(parts.hostname or "", parts.port or 443, proto=socket.IPPROTO_TCP)
    except (OSError, ValueError):
        return None
    addresses = [str(entry[4][0]).partition("%")[0] for entry in answers]
    return next((address for address in addresses if not ipaddress.ip_address(address).is_global), None)
