"""One POST to one endpoint: no redirect, no cookie, no proxy, to a checked address, bounded in time and size.
Needs the extra `push`.

aiohttp, because a request costs it about a third of what it costs httpx: a process is to push thousands a
second.
"""

from __future__ import annotations

import asyncio
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packhorse.worker.calls.push.addresses import CheckedResolver, ForbiddenAddress
from packhorse.worker.calls.push.declarations import PushDeclaration
from packhorse.worker.calls.push.signing import PUSH_NEEDS
from packhorse.worker.errors import ConfigError, ServiceFailed

if TYPE_CHECKING:
    import aiohttp

#: An idle connection is closed after this: before a server closes it, in the moment of the next request.
KEEP_SECONDS = 2.0
#: What cannot be packed is longer when it is: by so much at most, of the longest answer that is read.
PACKING_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class PushAnswer:
    """What an endpoint has answered. headers: names in lower case. body: unpacked, as much as is read.
    cut: there was more of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    cut: bool


class PushUnanswered(ServiceFailed):
    """There was no answer, not all of it, or not in time."""


class PushClient:
    """Connections to one endpoint, of each event loop its own. Raises ConfigError without aiohttp."""

    def __init__(self, declaration: PushDeclaration) -> None:
        _aiohttp()  # now: in the event loop the import would hold up all others
        self._declaration = declaration
        self._sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = (
            weakref.WeakKeyDictionary()
        )

    async def post(self, headers: Mapping[str, str], body: bytes) -> PushAnswer:
        """Raises PushUnanswered."""
        aiohttp = _aiohttp()
        said = self._declaration
        limit = asyncio.timeout(said.service.timeout_ms / 1000)
        try:
            async with (
                limit,
                self._session().post(said.url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                content, cut = await _read(answer, said.max_answer_bytes)
                found = {name.lower(): value for name, value in answer.headers.items()}
                return PushAnswer(answer.status, found, content, cut)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._failed(
                f"did not answer within {said.service.timeout_ms / 1000:g} s (timeout)"
            ) from error
        except aiohttp.ClientError as error:
            forbidden = error.__cause__ or error.__context__
            if isinstance(forbidden, ForbiddenAddress):
                raise self._failed(str(forbidden)) from None
            raise self._failed(f"{_words(error)}: {type(error).__name__}") from error
        except ForbiddenAddress as error:
            raise self._failed(str(error)) from None
        except (OSError, zlib.error, ValueError) as error:
            raise self._failed(f"{_words(error)}: {type(error).__name__}") from error

    def _failed(self, text: str) -> PushUnanswered:
        said = self._declaration
        return PushUnanswered(
            f"the endpoint of {said.types}: {text}", service=said.service.name, endpoint=said.url
        )

    def _session(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            aiohttp, said = _aiohttp(), self._declaration
            resolver: Any = CheckedResolver(
                allow_private=said.allow_private, only_loopback=said.only_loopback
            )
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=resolver, use_dns_cache=False, limit=0, keepalive_timeout=KEEP_SECONDS
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        return session

    async def close(self) -> None:
        """Close the connections of the running loop."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    def after_fork(self) -> None:
        """In a forked child: the connections are its parent's."""
        self._sessions = weakref.WeakKeyDictionary()


async def _read(answer: aiohttp.ClientResponse, most: int) -> tuple[bytes, bool]:
    """The body, unpacked, at most so many bytes; and whether there was more. What is left is not read: the
    connection is closed with it. What unpacks to nothing, or stands behind the end of what is packed, counts.
    """
    packed = answer.headers.get("content-encoding", "identity").lower()
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if packed in ("gzip", "x-gzip", "deflate") else None
    found, came = bytearray(), 0
    async for chunk in answer.content.iter_any():
        came += len(chunk)
        if unpack is None:
            found += chunk
        elif not unpack.eof:  # behind its end zlib would keep all that comes
            found += unpack.decompress(chunk, most + 1 - len(found))
        if len(found) > most or came > most + PACKING_BYTES:
            answer.close()
            return bytes(found[:most]), True
    return bytes(found), False


def _words(error: BaseException) -> str:
    aiohttp = _aiohttp()
    if isinstance(error, aiohttp.ClientConnectorError):
        return "cannot be reached"
    if isinstance(error, zlib.error):
        return "has answered what cannot be unpacked"
    return "broke off"


def _aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError:
        raise ConfigError([f"push {PUSH_NEEDS}"]) from None
    return aiohttp
