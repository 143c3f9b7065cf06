"""No personal data and no secrets in log lines, whoever wrote them (SPEC O3, FAILURES 75).

Every string of a record passes through `mask`: phone numbers (`+250788***456`), e-mail addresses, passwords
in URLs, `password=`, bearer tokens, API keys, JSON web tokens. Values under a key that names a secret
disappear whole. Control characters become visible, so that no value can forge a line or hide text. Texts are
cut at MAX_TEXT and every pattern is bounded: the time is proportional to the length, whatever the text. Best
effort by nature: what must not be seen must not be logged.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from packhorse.worker.observe.structured import EventDict

MAX_TEXT = 20_000
MAX_DEPTH = 6
MAX_ITEMS = 100
HIDDEN = "***"

_SECRET_WORD = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|(?:api|access|private|secret|signing)[_-]?key|credentials?|authorization|cookie)"
_SECRET_KEY = re.compile(rf"(?:^|[_-]|\b|(?-i:(?<=[a-z0-9])(?=[A-Z]))){_SECRET_WORD}s?$", re.IGNORECASE)

_URL_PASSWORD = re.compile(r"(://[^\s:/@]{0,100}:)\S{1,200}(?=@)")
_BEARER = re.compile(r"\b(Bearer)(\s{1,3})[A-Za-z0-9._~+/=-]{6,2000}", re.IGNORECASE)
_BASIC = re.compile(r"\b(Basic\s{1,3})([A-Za-z0-9+/]{4,2000})={0,2}", re.IGNORECASE)
#: A value in quotes may hold escaped ones (JSON, libpq) and miss its end (a text that was cut); the quotes
#: may be escaped, too (JSON within JSON).
_ASSIGNED = re.compile(
    rf"({_SECRET_WORD}s?(?:\\{{0,3}}[\"'])?\s{{0,3}}[=:]\s{{0,3}})"
    r"(?:\"(?:\\.|[^\"\\\n]){0,4000}\"?|'(?:\\.|[^'\\\n]){0,4000}'?|\\{1,3}\"[^\"\n]{0,4000}\"?"
    r"|(?:(?:Bearer|Basic|Digest)\s{1,3})?(?:\\.|[^\s,;&\"')}\]\\]){1,500})",
    re.IGNORECASE,
)
_KEYS = re.compile(
    r"(?<![\w-])(?:eyJ[\w-]{8,2000}\.[\w-]{4,4000}(?:\.[\w-]{0,2000})?|(?:sk|pk|rk|whsec)[-_][\w-]{12,200}|gh[pousr]_\w{16,255}|github_pat_\w{16,255}"
    r"|A(?:KIA|SIA)[0-9A-Z]{12,20}|AIza[\w-]{30,40}|xox[abeprs]-[\w-]{8,200}|EAA[A-Za-z0-9]{20,400}|glpat-[\w-]{16,64})"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,8000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
)
_EMAIL = re.compile(r"(?<![\w.%+-])([\w%+-])[\w.%+-]{0,63}@([\w-]{1,63}(?:\.[\w-]{1,63}){1,8})")
#: What stands between the groups of a phone number: blanks of any width, dots, dashes, slashes.
_GAP = r"[ \t\u00a0\u2000-\u200a\u202f\u3000./\u2010-\u2013-]"
#: With a plus: any spacing. Without: a run of 10 to 15 digits; groups that begin with a 0, or with a group in
#: parentheses; 3-3-4. Neither a UUID, nor a date is one (`01.02.2026 10:00`), nor an address (`10.0.0.12`);
#: of groups mask_phone counts the digits.
_PHONE = re.compile(
    r"(?P<uuid>\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b)"
    rf"|(?:\+|%2[bB])\d(?:(?:{_GAP}|[()]){{0,3}}\d){{7,14}}(?!\d)"
    r"|(?<![\d.])\d{10,15}(?!\d|\.\d)"
    r"|(?<![\w.+/-])(?!\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b)(?P<groups>"
    rf"\(\d{{2,5}}\){_GAP}{{0,2}}(?!\d{{4}}-\d\d-\d\d)\d{{2,4}}(?:{_GAP}{{1,2}}\d{{2,5}}){{0,3}}"
    rf"|0\d{{1,4}}(?:{_GAP}{{1,2}}\d{{2,8}}){{1,4}}"
    rf"|(?:1{_GAP})?[2-9]\d\d{_GAP}\d{{3}}{_GAP}\d{{4}})(?![\w-]|[.:/]\d)"
)
#: Digits of a number in groups.
_FEWEST_DIGITS, _MOST_DIGITS = 9, 15
#: Of OpenTelemetry: a trace id or a span id.
_SPAN_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{16}")
_SPACING = re.compile(r"\D")
#: Everything that moves a cursor or hides text; line breaks and tabs apart.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def mask(text: str) -> str:
    """The text without what must not be seen, control characters made visible; at most MAX_TEXT characters of
    it.
    """
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT} more characters)"
    return mask_whole(text)


def mask_whole(text: str) -> str:
    """The same of all of a text that its caller has bounded: a traceback, say. In pieces, what a cut goes
    through would not be known.
    """
    text = _URL_PASSWORD.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1\2{HIDDEN}", text)
    text = _PRIVATE_KEY.sub(HIDDEN, text)
    text = _BASIC.sub(_mask_basic, text)
    text = _ASSIGNED.sub(rf"\1{HIDDEN}", text)
    text = _KEYS.sub(HIDDEN, text)
    text = _EMAIL.sub(rf"\1{HIDDEN}@\2", text)
    text = _PHONE.sub(_mask_number, text)
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def is_secret_key(name: str) -> bool:
    """Does the name of a value say that nobody may see it?"""
    return bool(_SECRET_KEY.search(name))


def _mask_basic(found: re.Match[str]) -> str:
    """`Basic` is a word, too: what follows is a secret when it is the base64 of `user:password`."""
    whole = found[2][: len(found[2]) // 4 * 4]
    return f"{found[1]}{HIDDEN}" if b":" in base64.b64decode(whole) else found[0]


def _mask_number(found: re.Match[str]) -> str:
    digits = len(_SPACING.sub("", found["groups"] or ""))
    if found["uuid"] or (found["groups"] and not _FEWEST_DIGITS <= digits <= _MOST_DIGITS):
        return found[0]
    return mask_phone(found[0])


def mask_phone(number: str) -> str:
    """`+250788123456` -> `+250788***456`: enough to tell two apart, not enough to call."""
    plus = number.startswith(("+", "%"))
    digits = _SPACING.sub("", number[3:] if number.startswith("%") else number)
    shown = max(0, min(6, len(digits) - 6))
    return f"{'+' if plus else ''}{digits[:shown]}{HIDDEN}{digits[-3:]}"


def masked(value: Any, depth: int = 0) -> Any:
    """A value of a record with every text in it masked; containers are bounded in depth and size."""
    if isinstance(value, str):
        return mask(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth >= MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())[:MAX_ITEMS]
        return {
            mask(str(key)): HIDDEN if _SECRET_KEY.search(str(key)) else masked(item, depth + 1)
            for key, item in items
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [masked(item, depth + 1) for item in list(value)[:MAX_ITEMS]]
    try:
        return mask(str(value))
    except Exception:  # a value whose text cannot be had must not cost the line
        return f"<{type(value).__name__}>"


def mask_record(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """A processor: after exceptions were formatted, before rendering. Private keys (`_record`) are left
    alone.
    """
    for key, value in event.items():
        if key.startswith("_") or key in ("level", "timestamp"):
            continue
        if key in ("trace_id", "span_id") and isinstance(value, str) and _SPAN_ID.fullmatch(value):
            continue  # many hold ten digits in a row, which are no phone number
        event[key] = HIDDEN if value is not None and _SECRET_KEY.search(key) else masked(value)
    return event


def on_one_line(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """A processor for the console: values keep no line break, tracebacks get a margin that nobody can
    forge.
    """
    for key, value in event.items():
        if not isinstance(value, str) or key.startswith("_"):
            continue
        if key in ("exception", "stack"):
            event[key] = "\n".join(f"  | {line}" for line in value.split("\n"))
        else:
            event[key] = value.replace("\n", "\\n").replace("\t", "\\t")
    return event
