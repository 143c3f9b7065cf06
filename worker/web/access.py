"""Who may what on the page (SPEC O6, FAILURES 74): the Host header, who visits, the origin of a change,
headers of every answer.

A visitor is one of three: a session that a token began; the user whom a trusted proxy names; on loopback, as
long as nobody has made a token, whoever is there. What is in doubt is refused.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request

from packhorse.worker.config import Settings
from packhorse.worker.errors import StoreError
from packhorse.worker.store import tokens
from packhorse.worker.web.reading import Site

SESSION_SECONDS = 12 * 3600
#: A revoked token is refused after this at the latest.
CHECK_SECONDS = 10.0
#: Failed logins of an address within a minute; addresses that are remembered.
MOST_FAILURES, FAILURE_SECONDS, MOST_ADDRESSES = 5, 60.0, 10_000
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
COOKIE = "packhorse_session"
CSRF_FIELD = "csrf"
_NONCE_CHARACTERS = 16

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers say `Origin: null` of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Role(IntEnum):
    """What a visitor may do; each may what those below it may."""

    VIEWER = 1  # look, without payloads
    OPERATOR = 2  # see payloads, steer
    ADMIN = 3  # what cannot be taken back

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks. name: goes into operator_actions. secret: what the CSRF token is made of. by: session, proxy
    or loopback.
    """

    name: str
    role: Role
    secret: str
    by: str

    def may(self, role: Role) -> bool:
        return self.role >= role


class Refused(Exception):
    """A request that is not answered: with this status, sentence and hint."""

    def __init__(self, status: int, text: str, hint: str = "", headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.text = text
        self.hint = hint
        self.headers = headers or {}
        super().__init__(text)


class Access:
    """Decides about requests. site: the database that has the tokens. clock: monotonic seconds; wall: seconds
    since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        site: Site,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._site = site
        self._clock = clock
        self._wall = wall
        self._key = (
            settings.web_secret.get_secret_value() if settings.web_secret else secrets.token_hex(32)
        ).encode()
        self._hosts = {*LOOPBACK, *settings.web_hosts, *_as_host(settings.web_host)}
        self._networks = [ipaddress.ip_network(text) for text in settings.web_trusted_proxies]
        self._loopback = is_loopback(settings.web_host)
        #: Without TLS, and without a proxy that has it, a Secure cookie would never come back.
        self._secure = not (settings.web_insecure or (self._loopback and not self._networks))
        #: Token -> when it was checked, when a session used it, its bearer.
        self._checked: OrderedDict[str, tuple[float, float, Visitor | None]] = OrderedDict()
        self._checking: asyncio.Future[None] | None = None
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._has_tokens: bool | None = None
        self._looking: asyncio.Future[None] | None = None
        self._looked_at = float("-inf")

    def check_host(self, request: HTTPConnection) -> None:
        """Refuse a name that is not ours: a page of somebody else whose name leads to us (DNS rebinding)."""
        given = request.headers.getlist("host")
        name = _host_name(given[0]) if len(given) == 1 else ""
        if name not in self._hosts:
            raise Refused(
                421, "The page does not answer to this name.", "web_hosts lists the names that it answers to."
            )

    def check_way(self, request: HTTPConnection) -> None:
        """Beyond loopback, without web_insecure, only proxies may come: TLS is theirs."""
        if not self._loopback and not self._settings.web_insecure and not self._is_proxy(request):
            raise Refused(
                403,
                "The page is reached through its proxy only.",
                "web_trusted_proxies lists the addresses of proxies.",
            )

    def check_reader(self, request: HTTPConnection) -> None:
        """Refuse what a page of somebody else fetches without going there: on loopback no cookie would stop
        it.
        """
        if (
            request.headers.get("sec-fetch-site") in ("cross-site", "same-site")
            and request.headers.get("sec-fetch-mode") != "navigate"
        ):
            raise Refused(403, "This was asked by another page.", "Open the page itself.")

    async def visitor(self, request: HTTPConnection) -> Visitor | None:
        """Who asks; None when nobody has said. Raises Refused for a proxy that says nonsense."""
        if self._settings.web_user_header and self._is_proxy(request):
            named = self._named_by_proxy(request)
            if named is not None:
                return named
        session = request.cookies.get(COOKIE)
        if session:
            return await self._of_session(session)
        if self._loopback and not self._networks and not await self._needs_token():
            return Visitor(_login_name(), Role.ADMIN, "loopback", "loopback")
        return None

    async def log_in(self, request: Request, token: str) -> str:
        """The session that a token begins, as value of the cookie. Raises Refused: 401, 429; StoreError."""
        address = self._address(request)
        now = self._clock()
        recent = [at for at in self._failures.get(address, []) if now - at < FAILURE_SECONDS]
        if len(recent) >= MOST_FAILURES:
            wait = int(FAILURE_SECONDS - (now - recent[0])) + 1
            raise Refused(
                429,
                "Too many failed logins from this address.",
                f"Try again in {wait} s.",
                {"Retry-After": str(wait)},
            )
        self._failures[address] = [*recent, now]  # before the database is asked: attempts at once count, too
        self._failures.move_to_end(address)
        while len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        try:
            found = await self._site.act(tokens.use, token)
        except StoreError:
            self._failures[address] = recent
            raise
        if found is None:
            raise Refused(
                401, "No token in force is this one.", "`packhorse token create` makes one; it is shown once."
            )
        self._failures.pop(address, None)
        body = f"{found['id']}.{int(self._wall())}.{secrets.token_hex(16)}"
        return f"{body}.{self._sign('session', body)}"

    def cookie(self, value: str, *, path: str) -> dict[str, Any]:
        """Arguments of set_cookie."""
        return {
            "key": COOKIE,
            "value": value,
            "max_age": SESSION_SECONDS,
            "path": path,
            "secure": self._secure,
            "httponly": True,
            "samesite": "strict",
        }

    def csrf(self, visitor: Visitor | None) -> str:
        """What a form of this visitor must bring back; another text each time, for a page is compressed
        together with what its address says, and the size would tell a constant one (BREACH).
        """
        return self._csrf(visitor, secrets.token_hex(_NONCE_CHARACTERS // 2))

    def stand_in(self, key: str) -> str:
        """What a viewer sees instead of a key, which may be a phone number: the same for the same key, so
        that its messages are seen to belong together.
        """
        return f"••• {self._sign('key', key)[:6]}"

    def check_change(self, request: Request, visitor: Visitor | None, given: str) -> None:
        """Refuse what another page, or nobody of ours, has sent: the Origin must be ours, and the form as
        well.
        """
        origins, host = request.headers.getlist("origin"), request.headers.get("host", "")
        if (
            len(origins) != 1
            or urlsplit(origins[0]).scheme not in ("http", "https")
            or urlsplit(origins[0]).netloc.lower() != host.lower()
        ):
            raise Refused(403, "This was sent by another page.", "Open the page itself and do it there.")
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise Refused(403, "This was sent by another page.", "Open the page itself and do it there.")
        expected = self._csrf(visitor, given[:_NONCE_CHARACTERS])
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise Refused(
                403, "The form is too old, or of another session.", "Load the page again and repeat it."
            )

    def _csrf(self, visitor: Visitor | None, nonce: str) -> str:
        who = f"{visitor.by} {visitor.name} {visitor.secret}" if visitor else "nobody"
        return nonce + self._sign("csrf", f"{nonce} {who}")

    async def _of_session(self, session: str) -> Visitor | None:
        body, _, signature = session.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("session", body).encode()):
            return None
        token_id, begun, nonce = body.split(".")
        if not 0 <= self._wall() - int(begun) < SESSION_SECONDS:
            return None
        token = await self._token(token_id)
        return token and Visitor(token.name, token.role, nonce, "session")

    async def _token(self, token_id: str) -> Visitor | None:
        """The bearer of a token in force, known for CHECK_SECONDS; while the database is away, as it was last
        known. Raises Refused.
        """
        while True:
            now = self._clock()
            checked_at, _, known = self._checked.get(token_id, (float("-inf"), now, None))
            if now - checked_at < CHECK_SECONDS or (token_id in self._checked and self._site.is_resting):
                self._remember(token_id, checked_at, now, known)
                return known
            if token_id not in self._checked or self._checking is None:
                self._checking = asyncio.ensure_future(self._check(token_id))
            try:
                await asyncio.shield(self._checking)  # perhaps another's, in which this token was not
            except StoreError as error:
                if token_id in self._checked:
                    return known
                raise Refused(
                    503, "The database is away, and it has the tokens.", "Load the page again in a moment."
                ) from error

    async def _check(self, token_id: str) -> None:
        """Look at this token, and in the same statement at all others that are in use: twenty windows of as
        many people cost one query in CHECK_SECONDS.
        """
        now = self._clock()
        used = {each: at for each, (_, at, _) in self._checked.items() if now - at < 2 * CHECK_SECONDS}
        used[token_id] = now
        try:
            rows = await self._site.act(tokens.in_force, list(used))
        finally:
            self._checking = None
        for each, used_at in used.items():
            row = rows.get(each)
            found = Visitor(str(row["name"]), Role[str(row["role"]).upper()], "", "session") if row else None
            self._remember(each, now, used_at, found)

    def _remember(self, token_id: str, checked_at: float, used_at: float, found: Visitor | None) -> None:
        self._checked[token_id] = (checked_at, used_at, found)
        self._checked.move_to_end(token_id)
        while len(self._checked) > MOST_ADDRESSES:
            self._checked.popitem(last=False)

    async def _needs_token(self) -> bool:
        """Has somebody made a token? Then loopback, too, is no proof of who it is: a proxy of this machine
        comes from there. Raises Refused.
        """
        is_known = self._has_tokens is not None
        if self._clock() - self._looked_at >= CHECK_SECONDS and not (is_known and self._site.is_resting):
            if self._looking is None:  # twenty windows that refresh at once ask it once
                self._looking = asyncio.ensure_future(self._look_for_tokens())
            try:
                await asyncio.shield(self._looking)
            except StoreError as error:
                if not is_known:
                    raise Refused(503, "The database is away.", "Load the page again in a moment.") from error
        return bool(self._has_tokens)

    async def _look_for_tokens(self) -> None:
        try:
            self._has_tokens = await self._site.act(tokens.any_in_force)
            self._looked_at = self._clock()
        finally:
            self._looking = None

    def _named_by_proxy(self, request: HTTPConnection) -> Visitor | None:
        names = request.headers.getlist(self._settings.web_user_header or "")
        if not names or names == [""]:
            return None
        roles = (
            request.headers.getlist(self._settings.web_role_header)
            if self._settings.web_role_header
            else ["viewer"]
        )
        if len(names) != 1 or len(roles) > 1 or not 1 <= len(names[0]) <= 100 or not names[0].isprintable():
            raise Refused(
                403,
                "The proxy does not say clearly who you are.",
                "Each of its headers must come once; it must drop those of the browser.",
            )
        if not roles or roles[0] not in [role.label for role in Role]:
            raise Refused(
                403,
                "The proxy gives you no role of this page.",
                "viewer, operator or admin, in web_role_header.",
            )
        return Visitor(names[0], Role[roles[0].upper()], "proxy", "proxy")

    def _is_proxy(self, request: HTTPConnection) -> bool:
        return bool(request.client) and self._trusts(request.client.host)  # type: ignore[union-attr]

    def _trusts(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(found, "ipv4_mapped", None)
        return any((mapped or found) in network for network in self._networks)

    def _address(self, request: HTTPConnection) -> str:
        """Who tries: of what a trusted proxy has added, the last address that is no proxy; a network of IPv6
        counts as one.
        """
        found = request.client.host if request.client else ""
        if self._trusts(found):
            said = ",".join(request.headers.getlist("x-forwarded-for")).split(",")
            found = next(
                (text.strip() for text in reversed(said) if text.strip() and not self._trusts(text.strip())),
                found,
            )
        try:
            address = ipaddress.ip_address(found)
        except ValueError:
            return found[:60]
        return (
            str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)
        )

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new(self._key, f"{purpose} {text}".encode(), hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Does only this machine reach this address?"""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _as_host(host: str) -> list[str]:
    """The address we listen on, as a browser writes it; none for all addresses."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return [host.lower()]
    return [] if address.is_unspecified else [f"[{address}]" if address.version == 6 else str(address)]


def _host_name(text: str) -> str:
    """`queue.example.com:8400` without its port."""
    if text.startswith("["):
        name, _, port = text.partition("]")
        name += "]"
    else:
        name, _, port = text.partition(":")
        port = f":{port}" if port else ""
    return name.lower() if not port or (port[0] == ":" and port[1:].isdigit()) else ""


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
