"""Queues that are forwarded to RabbitMQ (docs/rabbitmq.md); loaded where one of its parts is started."""

from __future__ import annotations

from importlib.util import find_spec

from packhorse.worker.errors import ConfigError


def require_pika() -> None:
    """For commands, before they import what is in here. Raises ConfigError that names the extra."""
    if find_spec("pika") is None:
        raise ConfigError(["amqp_url: RabbitMQ needs the package pika: pip install 'packhorse[amqp]'"])
