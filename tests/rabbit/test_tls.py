"""amqps: a node with a certificate of a CA that exists for this test."""

from __future__ import annotations

import subprocess

import pytest

from tests.rabbit.forwarding import Forwarding
from tests.support.accounting import effects
from tests.support.rabbitmq import Node, free_ports
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

TLS = """
listeners.ssl.default = 127.0.0.1:{port}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.key
"""


def sign(folder, ca: str, name: str, address: str) -> None:
    """A CA, and a certificate of it for an address."""
    for arguments in (
        f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem",
        f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr",
        f"x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}.key -CAcreateserial -days 2 -extfile names -out {name}.pem",
    ):
        (folder / "names").write_text(f"subjectAltName=IP:{address}\n")
        subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def secure(rabbit_place, tmp_path_factory):
    """A node with TLS, the folder of its CA, and its port."""
    folder = tmp_path_factory.mktemp("tls")
    sign(folder, "ca", "server", "127.0.0.1")
    sign(folder, "other", "stranger", "127.0.0.1")
    (port,) = free_ports(1)
    node = Node(rabbit_place, "secure", config=TLS.format(port=port, folder=folder))
    try:
        yield node.start().wait_ready(), folder, port
    finally:
        node.close()


@pytest.fixture
def forwarding(database, ledger, secure, start_daemon):
    _, _, port = secure
    forwarding = Forwarding(database, ledger, f"amqps://127.0.0.1:{port}/%2F", start_daemon)
    forwarding.forward()
    return forwarding


def test_relay_and_workers_speak_tls(database, secure, forwarding, monkeypatch):
    _, folder, _ = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
    forwarding.relay().wait_ready()
    forwarding.workers()
    effects(database, 20)
    forwarding.wait_handled([f"m{n}" for n in range(20)])
    forwarding.stop()


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_a_certificate_that_is_not_accepted_is_named(database, secure, forwarding, monkeypatch, wrong):
    _, folder, port = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / ("other.pem" if wrong == "authority" else "ca.pem")))
    if wrong == "name":
        forwarding.url = f"amqps://localhost:{port}/%2F"
    effects(database, 1)
    for command, actors, options in [
        ("relay", "", ()),
        ("worker", "tests.support.forwarded_actors", ("--broker", "amqp")),
    ]:
        daemon = forwarding.start(command, actors, options)
        assert daemon.process.wait(30) == 2, daemon.log
        assert "the certificate of RabbitMQ is not accepted" in daemon.log
        assert "SSL_CERT_FILE" in daemon.log
    assert database.query("select state, attempt from message_queue") == [("pending", 0)]


def test_a_certificate_that_another_ca_has_signed_meanwhile_is_waited_for(
    database, secure, forwarding, monkeypatch
):
    node, folder, _ = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
    relay = forwarding.relay().wait_ready()
    effects(database, 5)
    wait_until(lambda: database.query("select count(*) from message_queue") == [(0,)])
    (folder / "server.pem").rename(folder / "kept.pem")
    (folder / "server.key").rename(folder / "kept.key")
    for kind in ("pem", "key"):
        (folder / f"server.{kind}").write_bytes((folder / f"stranger.{kind}").read_bytes())
    node.do("ssl:clear_pem_cache()")
    node.do('rabbit_networking:close_connections(rabbit_networking:connections(), <<"changed">>)')
    wait_until(lambda: "the certificate of RabbitMQ is not accepted" in relay.log)
    effects(database, 5, "later")
    for kind in ("pem", "key"):
        (folder / f"kept.{kind}").rename(folder / f"server.{kind}")
    node.do("ssl:clear_pem_cache()")
    wait_until(lambda: database.query("select count(*) from message_queue") == [(0,)], 40)
    assert relay.process.poll() is None
    assert relay.stop() == 0
