"""Personal data and secrets in texts (worker/observe/masking.py): SPEC O3, FAILURES 75."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.worker.observe.masking import HIDDEN, MAX_TEXT, mask, mask_record, masked, on_one_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("call +250788123456 now", "call +250788***456 now"),
        ("+250 788 123 456", "+250788***456"),
        ("+1 (202) 555-0143", "+12025***143"),
        ("wa id 250788123456", "wa id 250788***456"),
        ("user_250788123456:", "user_250788***456:"),
        ("phone=%2B250788123456&x=1", "phone=+250788***456&x=1"),
        ("0788 123 456", "0788***456"),
        ("0788-123-456.", "0788***456."),
        ("tel:+250788123456,+250788123457", "tel:+250788***456,+250788***457"),
        ("{'phone': '+250788123456'}", "{'phone': '+250788***456'}"),
        ("(650) 555-0106", "6505***106"),
        ("call (650)555-0106.", "call 6505***106."),
        ("(0788) 123 456", "0788***456"),
        ("650-555-0106", "6505***106"),
        ("1 650 555 0106", "16505***106"),
        ("+250\u00a0788\u00a0123\u00a0456", "+250788***456"),
        ("+250\u202f788\u202f123\u202f456", "+250788***456"),
        ("+49 (0) 30 / 1234567", "+490301***567"),
        ("0788\u00a0123\u00a0456", "0788***456"),
        ("0788\u202f123\u202f456", "0788***456"),
        ("0788.123.456", "0788***456"),
        ("0788/123456", "0788***456"),
        ("0788/123/456", "0788***456"),
        ("06 12 34 56 78", "0612***678"),
        ("wa: 650.555.0106,", "wa: 6505***106,"),
    ],
)
def test_phone_numbers_keep_their_ends(text, expected):
    assert mask(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "8f14e45f-ceea-467f-a9b1-123456789012",
        "2026-11-21T09:34:08.123456+00:00",
        "message 12345 of queue 7",
        "took 1763717648.123 s",
        "127.0.0.1:5432",
        "192.168.100.200",
        "010.020.030.040:5432",
        "2026-11-21 09:34:08",
        "21.11.2026 09:34",
        "01.02.2026 10:00",
        "01/02/2026 10:00",
        "(404) 2026-11-21",
        "f(650) 555",
        "(1) 22 of 33",
        "order 2026-000123",
        "0012-34",
        "message 123456789 attempt 3",
        "line 120-130, column 1000",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "sha 3f786850e387550fdab836ed7e6dc881de23001b",
        "/0788/123/456/file",
        "PostgreSQL 18.1",
        "line 99, in handle",
        "0.1.0",
        "error 42P01",
        "worker_started",
        "basic validation failed",
        "Basic Authentication is off",
        "2 tokens left",
    ],
)
def test_what_is_no_phone_number_or_secret_stays(text):
    assert mask(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("to ann.lee+x@example.co.uk failed", "to a***@example.co.uk failed"),
        ("250788123456@s.whatsapp.net", "2***@s.whatsapp.net"),
    ],
)
def test_e_mail_addresses_keep_first_letter_and_domain(text, expected):
    assert mask(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://app:s3cret-x@db:5432/x",
        "postgres://app:p/s3cret-x@db/x",
        "postgres://app:a@s3cret-x@db/x",
        "host=db password=s3cret-x dbname=x",
        "PASSWORD = 's3cret-x y'",
        '{"password": "s3cret-x, s3cret-x"}',
        "{'api_key': 's3cret-x'}",
        "api-key: s3cret-x",
        "Authorization: Bearer s3cret-x",
        "Authorization: Basic s3cret-x",
        "authorization='Bearer s3cret-x'",
        "got Bearer s3cret-xabcdef",
        "client_secret=s3cret-x&a=b",
        "access_token=s3cret-x",
        "Set-Cookie: s3cret-x",
        "https://x.test/?token=s3cret-x",
        "PGPASSWORD=s3cret-x",
        r"host=db password='it\'s s3cret-x' dbname=x",
        r"host=db password=a\ s3cret-x dbname=x",
        r'{"password": "a\"s3cret-x"}',
        r'"{\"password\": \"s3cret-x\"}"',
        '{"token": "a, s3cret-x',
        "secret_key=s3cret-x",
        "signingKey: s3cret-x",
        "-----BEGIN RSA PRIVATE KEY-----\ns3cret-x\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_secrets_beside_their_names_disappear(text):
    assert "s3cret-x" not in mask(text) and HIDDEN in mask(text)


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdefghijklmnop1234",
        "sk_live_abcdefghijklmnop",
        "ghp_abcdefghijklmnopqrstuv",
        "AKIAIOSFODNN7EXAMPLE",
        "ASIAIOSFODNN7EXAMPLE",
        "Basic dXNlcjpwYXNzd29yZA==",
        "xoxb-123-abcdefghij",
        "whsec_abcdefghijklmnop",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghijk",
        "EAABsbCS1iHgBAabcdefghijklmnopqrst",
    ],
)
def test_keys_of_a_known_shape_disappear(key):
    assert key not in mask(f"refused: {key} is invalid") and mask(f"refused: {key} is invalid").endswith(
        "is invalid"
    )


def test_a_value_under_the_name_of_a_secret_disappears_whole():
    event = mask_record(
        None,
        "info",
        {
            "event": "x",
            "api_key": 12345,
            "note": {"password": ["a", "b"], "phone": "+250788123456", "dbPassword": "a", "max_tokens_in": 7},
            "token": None,
        },
    )
    hidden = {"password": HIDDEN, "phone": "+250788***456", "dbPassword": HIDDEN, "max_tokens_in": 7}
    assert event == {"event": "x", "api_key": HIDDEN, "note": hidden, "token": None}


def test_containers_are_bounded_and_nothing_that_cannot_be_printed_costs_the_line():
    class Explosive:
        def __str__(self):
            raise RuntimeError("no")

    deep = value = []
    for _ in range(50):
        value.append([])
        value = value[0]
    assert (
        "…" in str(masked(deep))
        and len(masked(list(range(1000)))) == 100
        and masked(Explosive()) == "<Explosive>"
    )


@given(st.integers(8, 15), st.data())
def test_no_phone_number_with_a_plus_survives(length, data):
    digits = data.draw(st.text("0123456789", min_size=length, max_size=length).filter(lambda d: d[0] != "0"))
    around = (
        data.draw(st.text(" abc,;:'\"()[]{}<>/=", max_size=5)),
        data.draw(st.text(" abc,;:'\"()[]{}<>/=", max_size=5)),
    )
    assert digits not in mask(f"{around[0]}+{digits}{around[1]}")


@given(
    st.from_regex(r"[a-z][a-z0-9._%+-]{2,20}@[a-z0-9-]{1,20}\.[a-z]{2,5}", fullmatch=True),
    st.text(" ,;:<>()'\"", max_size=3),
)
def test_no_e_mail_address_survives(address, around):
    assert address not in mask(f"{around}{address}{around}")


@given(
    st.from_regex(r"[A-Za-z0-9!#$%*+/._~-]{6,40}", fullmatch=True),
    st.sampled_from(["password", "api_key", "API-Key", "secret", "access_token", "pwd"]),
)
def test_no_assigned_secret_survives(secret, name):
    assert secret not in mask(f"x {name}={secret} y") and secret not in mask(f'{{"{name}": "{secret}"}}')


@given(st.text())
def test_any_text_is_masked_without_an_error_and_masking_again_finds_nothing_hidden(text):
    once = mask(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800-\udfff]", once)
    once.encode()


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "1",
        "+1",
        "0 ",
        "://:",
        "a@",
        "@",
        "eyJ-",
        "password=",
        'password="',
        "password='\\",
        'password=\\"',
        "-----BEGIN PRIVATE KEY-----",
        "Bearer ",
        "Basic ",
        "Basic dXNl",
        "sk-",
        '"',
        "'",
        "(",
        "%2B1",
        "0000",
        "1-",
        "a.",
        "token:'",
        "-" * 7,
    ],
)
def test_a_text_made_to_be_slow_is_not(part):
    """A pattern that backtracks would take minutes, with a million characters or with ten."""
    text = part * (1_000_000 // len(part))
    started = time.process_time()
    assert len(mask(text)) < 10 * MAX_TEXT
    assert time.process_time() - started < 2  # seconds; it takes hundredths of one


def test_a_value_cannot_forge_a_line_on_the_console():
    event = on_one_line(
        None,
        "info",
        mask_record(
            None,
            "info",
            {
                "event": "x\n2026-01-01 [info] forged",
                "reason": "a\r\nb\x1b[2Jc\u2028d\u202ee",
                "exception": "Traceback\nValueError: x\n2026-01-01 [info] forged",
            },
        ),
    )
    assert (
        "\n" not in event["event"]
        and "\n" not in event["reason"]
        and not set("\r\x1b\u2028\u202e") & set(event["reason"])
    )
    assert all(line.startswith("  | ") for line in event["exception"].split("\n"))
