"""Connections to RabbitMQ: where to, with which deadlines, and what a refusal means.

A broker that does not answer is BrokerAway: try again. One that refuses these credentials or this vhost is a
ConfigError: it would refuse again. No text of an error has the password.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pika
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ConnectionClosedByBroker,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from packhorse.worker.amqp.topology import ForwardedQueue, declare
from packhorse.worker.config import Settings, mask_url
from packhorse.worker.config.amqp import amqp_urls
from packhorse.worker.errors import ConfigError, WorkerError

T = TypeVar("T", bound=BaseException)
_ACCESS_REFUSED, _NOT_ALLOWED = 403, 530


class BrokerAway(WorkerError):
    """No usable connection to RabbitMQ. Retry with backoff; nothing about a message is at fault."""


def parameters(settings: Settings, purpose: str) -> list[pika.ConnectionParameters]:
    """One per host, in the order of the setting. purpose: a word for the broker's list of connections.

    Raises ConfigError without an amqp_url.
    """
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # each failure is said once, by us
    if settings.amqp_url is None:
        raise ConfigError(["amqp_url: not set; amqp://user@host:5672/vhost (PACKHORSE_AMQP_URL)"])
    return [_parameters(url, settings, purpose) for url in amqp_urls(settings.amqp_url.get_secret_value())]


def _parameters(url: str, settings: Settings, purpose: str) -> pika.ConnectionParameters:
    try:
        found = pika.URLParameters(url)
    except Exception as error:  # pika raises whatever its parser meets
        raise ConfigError([f"amqp_url: {mask_url(url)} cannot be read: {type(error).__name__}"]) from None
    found.heartbeat = settings.amqp_heartbeat_seconds
    found.socket_timeout = found.stack_timeout = settings.connect_timeout_seconds
    found.blocked_connection_timeout = None  # a blocked broker is waited for; its silence is not: heartbeats
    found.connection_attempts, found.retry_delay = 1, 0
    found.client_properties = {"connection_name": f"packhorse-{purpose} {socket.gethostname()}:{os.getpid()}"}
    return found


@contextmanager
def blocking(settings: Settings, purpose: str) -> Iterator[pika.BlockingConnection]:
    """A connection for a few calls at the start, closed at the end. Raises ConfigError, BrokerAway."""
    with translated(settings):
        connection = pika.BlockingConnection(parameters(settings, purpose))
    try:
        with translated(settings):
            yield connection
    finally:
        try:
            connection.close()
        except (AMQPError, OSError):
            pass  # it is closed already


def declare_queues(settings: Settings, names: Iterable[str], purpose: str) -> None:
    """Make what is missing on the broker for these queues (topology.py). Raises ConfigError, BrokerAway."""
    queues = [ForwardedQueue(name, settings.amqp_partitions) for name in names]
    with blocking(settings, purpose) as connection:
        declare(connection.channel(), queues)


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """pika's errors as ours."""
    try:
        yield
    except (AMQPError, OSError) as error:
        raise explained(error, settings) from error


def explained(error: BaseException, settings: Settings) -> ConfigError | BrokerAway:
    """What an error of pika means: to be tried again, or a setting that has to change."""
    url = mask_url(settings.amqp_url.get_secret_value()) if settings.amqp_url else "amqp_url"
    code = error.reply_code if isinstance(error, ConnectionClosedByBroker) else None
    text = error.reply_text if isinstance(error, ConnectionClosedByBroker) else ""
    if isinstance(error, ProbableAuthenticationError) or (
        code == _ACCESS_REFUSED and "login" in text.lower()
    ):
        return ConfigError(
            [f"amqp_url: RabbitMQ refuses user or password ({url}); rabbitmqctl authenticate_user USER"]
        )
    if code == _NOT_ALLOWED or isinstance(error, ProbableAccessDeniedError):
        return ConfigError(
            [
                f"amqp_url: RabbitMQ does not let this user into the vhost ({url}: {text or 'refused'}); "
                "rabbitmqctl add_vhost VHOST, rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'"
            ]
        )
    certificate = _cause(error, ssl.SSLCertVerificationError)
    if certificate is not None:
        return ConfigError(
            [
                f"amqp_url: the certificate of RabbitMQ is not accepted ({url}: {certificate.verify_message}); "
                "the name of the host must stand in it, and SSL_CERT_FILE must name the CA that signed it"
            ]
        )
    if isinstance(error, IncompatibleProtocolError):
        return ConfigError([f"amqp_url: what answers there does not speak AMQP 0-9-1 ({url})"])
    return BrokerAway(f"RabbitMQ does not answer ({url}): {_said(error)}")


def _said(error: BaseException) -> str:
    inner = _inner(error)
    if inner is not None:
        return _said(inner)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _inner(error: BaseException) -> BaseException | None:
    """What pika has wrapped in it."""
    causes: Any = getattr(error, "args", ())
    if isinstance(error, AMQPConnectionError) and causes and isinstance(causes[0], BaseException):
        return causes[0]
    inner = getattr(error, "exception", None)
    return inner if isinstance(inner, BaseException) else None


def _cause(error: BaseException | None, kind: type[T]) -> T | None:
    """The first of this kind, from the outermost on."""
    while error is not None and not isinstance(error, kind):
        error = _inner(error)
    return error


def root_of(error: BaseException) -> BaseException:
    """The last failure of a connection workflow over several hosts: they most often fail alike."""
    attempts = getattr(error, "exceptions", None)
    while attempts:
        error = attempts[-1]
        attempts = getattr(error, "exceptions", None)
    inner = getattr(error, "exception", None)
    while isinstance(inner, BaseException):
        error, inner = inner, getattr(inner, "exception", None)
    return error
