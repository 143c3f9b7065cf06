"""What a push may be declared as, where it may connect to, what it signs with (SPEC W8)."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from packhorse.worker.calls.push.addresses import CheckedResolver, ForbiddenAddress, literal, problem_of
from packhorse.worker.calls.push.declarations import declared_pushes
from packhorse.worker.calls.push.signing import LOOK_SECONDS, Secrets
from packhorse.worker.errors import ConfigError
from packhorse.worker.patterns import claimed_as, name_for
from tests.support.pushing import OTHER_SECRET, SECRET, push_toml, secret_file

standardwebhooks = pytest.importorskip("standardwebhooks")
pytest.importorskip("aiohttp")


def problems(folder: Path, **tables: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as refused:
        declared_pushes(push_toml(folder, **tables))
    return "\n".join(refused.value.problems)


@pytest.mark.parametrize(
    ("said", "field", "fix"),
    [
        ({"url": None}, "url", "https://hooks.example.com"),
        ({"url": "ftp://a.example/x"}, "url", "https://"),
        ({"url": "https:///x"}, "url", "names no host"),
        ({"url": "https://a.example/x?token=1"}, "url", "put what the endpoint needs into the path"),
        ({"url": "https://me:secret@a.example/x"}, "url", "user or a password"),
        ({"url": "https://a.example:99999/"}, "url", "cannot be read"),
        ({"url": "https://10.1.2.3/"}, "url", "allow_private = true"),
        ({"url": "https://127.0.0.1/"}, "url", "allow_private = true"),
        ({"url": "https://localhost/"}, "url", "allow_private = true"),
        ({"url": "https://2130706433/"}, "url", "allow_private = true"),
        ({"url": "https://0x7f.1/"}, "url", "allow_private = true"),
        ({"url": "https://0177.0.0.1/"}, "url", "allow_private = true"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "url", "allow_private = true"),
        ({"url": "https://[fd00::1]/"}, "url", "allow_private = true"),
        ({"url": "https://169.254.169.254/", "allow_private": True}, "url", "link-local"),
        ({"url": "https://[::ffff:169.254.169.254]/", "allow_private": True}, "url", "link-local"),
        ({"url": "https://224.0.0.1/", "allow_private": True}, "url", "multicast"),
        ({"url": "http://a.example/x"}, "url", "allow_http = true"),
        ({"url": "http://10.0.0.1/x", "allow_private": True}, "url", "allow_http = true"),
        ({"url": "https://a.example/", "secret_file": None}, "secret_file", "whsec_"),
        ({"url": "https://a.example/", "secret_file": "/no/such/file"}, "secret_file", "No such file"),
        ({"url": "https://a.example/", "queue": "a b"}, "queue", "name of a queue"),
        ({"url": "https://a.example/", "timeout": 3}, "timeout", "milliseconds"),
        ({"url": "https://a.example/", "breaker": {"trials": 0}}, "breaker.trials", "1 to 100"),
        ({"url": "https://a.example/", "max_in_flight": 0}, "max_in_flight", "1 to 10000"),
        ({"url": "https://a.example/", "max_answer_bytes": "64k"}, "max_answer_bytes", "whole number"),
        ({"url": "https://a.example/", "max_attempts": True}, "max_attempts", "whole number"),
        ({"url": "https://a.example/", "allow_http": 1}, "allow_http", "true or false"),
        ({"url": "https://a.example/", "secret": "x"}, "secret", "did you mean 'secret_file'?"),
    ],
)
def test_what_cannot_be_is_refused_with_field_and_fix(
    tmp_path: Path, said: dict[str, Any], field: str, fix: str
) -> None:
    said = {"allow_private": None} | said
    found = problems(tmp_path, **{"order.*": said})
    assert f': [push."order.*"]: {field}: ' in found and fix in found and "secret@" not in found


def test_every_problem_of_all_of_them_is_said(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        **{
            "a*b": {"url": "https://x.example"},
            "*": {"url": "x"},
            "c": {"url": "https://x.example", "timeout": 1},
        },
    )
    assert found.count('[push."a*b"]: name') == 1 and found.count('[push."*"]: name') == 1
    assert "url: must begin" in found and "timeout: " in found


def test_two_of_one_url_have_one_breaker(tmp_path: Path) -> None:
    same = {"url": "https://x.example/h"}
    one, two = declared_pushes(push_toml(tmp_path, **{"a.*": same, "b.*": same}))
    assert one.service == two.service and one.service.name.startswith("push.x.example.")
    assert "one endpoint has one breaker" in problems(
        tmp_path, **{"a.*": same, "b.*": {**same, "timeout": 5000}}
    )


def test_a_process_of_other_queues_needs_no_secret(tmp_path: Path) -> None:
    toml = push_toml(
        tmp_path,
        **{
            "a.*": {"url": "https://x.example/h", "queue": "a", "secret_file": "/not/mounted/here"},
            "b.*": {"url": "https://x.example/h"},
        },
    )
    assert [push.types for push in declared_pushes(toml, queues=["default"])] == ["b.*"]
    assert declared_pushes(toml, queues=["packhorse_maintenance"]) == []
    with pytest.raises(ConfigError, match="secret_file"):
        declared_pushes(toml)


@pytest.mark.parametrize(
    ("content", "fix"),
    [
        ("", "holds no secret; make one with"),
        ("\n \n", "holds no secret"),
        ("secret", "begins with whsec_"),
        ("whsec_***", "not base64"),
        ("whsec_" + base64.b64encode(b"short").decode(), "24 to 64 bytes, this one has 5"),
        ("\n".join([SECRET] * 3), "at most 2"),
        (f"{SECRET}\nwhsec_x", "line 2: "),
    ],
)
def test_a_bad_secret_is_refused_and_not_shown(tmp_path: Path, content: str, fix: str) -> None:
    (tmp_path / "secret").write_text(content)
    found = problems(tmp_path, **{"order.*": {"url": "https://a.example/"}})
    assert "secret_file: " in found and fix in found
    assert SECRET not in found and base64.b64encode(b"short").decode() not in found


def test_a_signature_for_each_secret_and_a_changed_file_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = secret_file(tmp_path)
    secrets = Secrets("order.*", path)

    def verified(secret: str) -> bool:
        try:
            standardwebhooks.Webhook(secret).verify('{"a":1}', secrets.headers("id-1", '{"a":1}'))
        except standardwebhooks.WebhookVerificationError:
            return False
        return True

    def changed(*now: str) -> None:
        path.write_text("\n".join(now))
        os.utime(path, ns=(1, os.stat(path).st_mtime_ns + 1))
        secrets._look_at -= LOOK_SECONDS

    assert verified(SECRET) and not verified(OTHER_SECRET)
    changed(OTHER_SECRET, SECRET)
    assert verified(SECRET) and verified(OTHER_SECRET)
    changed("")
    assert verified(SECRET) and verified(OTHER_SECRET), "what it had goes on"
    assert "push_secrets_refused" in caplog.text and SECRET not in caplog.text
    changed(OTHER_SECRET)
    assert not verified(SECRET) and verified(OTHER_SECRET)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "192.168.1.1",
        "172.16.0.1",
        "127.0.0.1",
        "100.64.0.1",
        "::1",
        "fc00::1",
        "fec0::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "2001:0:53aa:64c:0:0:f5ff:fffe",
        "::10.0.0.1",
    ],
)
def test_private_addresses_in_every_form(address: str) -> None:
    found = ipaddress.ip_address(address)
    assert problem_of(found, allow_private=False, only_loopback=False) is not None
    if address != "fec0::1":  # reserved long ago
        assert problem_of(found, allow_private=True, only_loopback=False) is None


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "0.0.0.0",
        "::",
        "255.255.255.255",
        "64:ff9b::a9fe:a9fe",
    ],
)
def test_no_endpoint_is_there(address: str) -> None:
    assert problem_of(ipaddress.ip_address(address), allow_private=True, only_loopback=False) is not None


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert problem_of(ipaddress.ip_address(address), allow_private=False, only_loopback=False) is None


def test_a_literal_in_any_form() -> None:
    forms = ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.1", "::1", "[::1]", "::ffff:127.0.0.1"]
    assert all(
        problem_of(found, allow_private=False, only_loopback=False)
        for form in forms
        if (found := literal(form)) or pytest.fail(form)
    )
    assert literal("a.example") is None and literal("1.2.3.4.example") is None


def answers(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def getaddrinfo(self: Any, host: Any, port: Any, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in addresses
        ]

    monkeypatch.setattr("asyncio.base_events.BaseEventLoop.getaddrinfo", getaddrinfo)


def test_a_name_is_connected_to_by_an_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = CheckedResolver(allow_private=False, only_loopback=False)
    answers(monkeypatch, "1.1.1.1", "2606:4700::1111")
    found = asyncio.run(resolver.resolve("hooks.example", 443))
    assert [one["host"] for one in found] == ["1.1.1.1", "2606:4700::1111"]
    assert {one["hostname"] for one in found} == {"hooks.example"}
    answers(monkeypatch, "1.1.1.1", "10.0.0.1")
    with pytest.raises(ForbiddenAddress, match=r"10\.0\.0\.1.*allow_private = true"):
        asyncio.run(resolver.resolve("hooks.example", 443))


def test_http_stays_on_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = CheckedResolver(allow_private=True, only_loopback=True)
    answers(monkeypatch, "10.0.0.1")
    with pytest.raises(ForbiddenAddress, match="allow_http = true"):
        asyncio.run(resolver.resolve("hooks.localhost", 80))


def test_the_longest_pattern_wins() -> None:
    names = ["order.*", "order.item.*", "order.refund", "send"]
    assert name_for(names, "order.created") == "order.*"
    assert name_for(names, "order.item.added") == "order.item.*"
    assert name_for(names, "order.refund") == "order.refund"
    assert name_for(names, "orders") is None
    assert claimed_as(["send"], names) == ["send"]
    assert claimed_as(["order.*"], names) == ["order.*", "!order.item.*", "!order.refund"]
    assert claimed_as(["order.item.*"], names) == ["order.item.*"]
