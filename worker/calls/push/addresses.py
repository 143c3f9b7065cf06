"""Which addresses a push may connect to (SPEC W8): a payload and a signature go nowhere by accident.

A name is looked up once per connection, its addresses are checked, and the connection goes to one of those:
a name that answers otherwise the next time (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

from packhorse.worker.errors import WorkerError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ALLOW_PRIVATE = "set allow_private = true when the endpoint belongs there"
#: An IPv4 address in an IPv6 one that a translator or tunnel would take apart: network, bits behind it.
_CARRIERS = (
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
    (ipaddress.IPv6Network("::/96"), 0),
)


class ForbiddenAddress(WorkerError):
    """The endpoint's host has an address that a push may not connect to."""


def literal(host: str) -> Address | None:
    """The address that a host is, in any form that a system takes (127.1, 0x7f000001, 2130706433, ::1); None
    of a name.
    """
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host)) if host.isascii() else None
    except (OSError, ValueError):
        return None


def innermost(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, else itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.teredo is not None:
        return address.teredo[1]
    if address not in (ipaddress.IPv6Address("::1"), ipaddress.IPv6Address("::")):
        for network, behind in _CARRIERS:
            if address in network:
                return ipaddress.IPv4Address((int(address) >> behind) & 0xFFFFFFFF)
    return address


def problem_of(address: Address, *, allow_private: bool, only_loopback: bool) -> str | None:
    """Why a push may not connect there; None when it may. Link-local addresses, where clouds keep their
    metadata, and multicast are never allowed.
    """
    found = innermost(address)
    nowhere = found.is_unspecified or (found.is_reserved and not found.is_loopback)
    if found.is_link_local or found.is_multicast or nowhere:
        return "is a link-local, multicast or reserved address, which no endpoint has"
    public = found.is_global and not (isinstance(found, ipaddress.IPv6Address) and found.is_site_local)
    if not public and not allow_private:
        return f"is in a private network; {ALLOW_PRIVATE}"
    if only_loopback and not found.is_loopback:
        return "is beyond loopback, where http:// shows payload and signature; use https, or set allow_http = true"
    return None


class CheckedResolver:
    """aiohttp's resolver, which answers with addresses that are allowed and with no others.

    Raises ForbiddenAddress when one of them is forbidden, and OSError when the name is not known.
    """

    def __init__(self, *, allow_private: bool, only_loopback: bool) -> None:
        self._allow_private = allow_private
        self._only_loopback = only_loopback

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[dict[str, Any]]:
        infos = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, family=socket.AF_UNSPEC
        )
        found: list[dict[str, Any]] = []
        for kind, _, protocol, _, place in infos:
            address = str(place[0])
            problem = problem_of(
                ipaddress.ip_address(address.partition("%")[0]),
                allow_private=self._allow_private,
                only_loopback=self._only_loopback,
            )
            if problem is not None:
                raise ForbiddenAddress(
                    f"url: the host {host[:100]} has the address {address}, which {problem}"
                )
            found.append(
                {
                    "hostname": host,
                    "host": address,
                    "port": place[1],
                    "family": kind,
                    "proto": protocol,
                    "flags": socket.AI_NUMERICHOST,
                }
            )
        return found

    async def close(self) -> None:
        """Nothing is kept."""
