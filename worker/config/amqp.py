"""Settings of the way through RabbitMQ (docs/rabbitmq.md). A part of Settings."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, field_validator

_URL = re.compile(r"amqps?://\S+")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")


def amqp_urls(text: str) -> list[str]:
    """A URL per host. They are separated by `;` or `,`; each is a whole URL, or host and port of a node
    that is reached as the first one is. Raises ValueError, which says nothing of the text.
    """
    first, *others = [part.strip() for part in re.split("[;,]", text) if part.strip()] or [""]
    if not _URL.fullmatch(first):
        raise ValueError("not a RabbitMQ URL (amqp://user@host:5672/vhost, or amqps://)")
    scheme, _, rest = first.partition("://")
    place, slash, path = rest.partition("/")
    if place.count("@") > 1:
        raise ValueError("more than one @ before the host; write one that belongs to the password as %40")
    login = place.rpartition("@")[0]
    urls = [first]
    for other in others:
        if _URL.fullmatch(other):
            urls.append(other)
        elif _HOST.fullmatch(other):
            urls.append(f"{scheme}://{login}{'@' if login else ''}{other}{slash}{path}")
        else:
            raise ValueError("what follows the first URL must be a URL, or host:port")
    return urls


class AmqpSettings(BaseModel):
    """Fields `amqp_*` of Settings."""

    broker: Literal["postgres", "amqp"] = Field(
        "postgres",
        description="Where `packhorse worker` takes messages from; amqp: those of forwarded queues, from RabbitMQ.",
    )
    amqp_url: SecretStr | None = Field(
        None,
        description="RabbitMQ for forwarded queues: `amqp://user@host:5672/vhost`, or `amqps://`; further hosts after `;` or `,`.",
    )
    amqp_partitions: int = Field(
        16,
        ge=1,
        le=256,
        description="RabbitMQ queues over which the conversations of a forwarded queue are spread; the same everywhere.",
    )
    amqp_prefetch: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Messages of a RabbitMQ queue that a process holds; none: two per thread, one per coroutine, more for quick handlers.",
    )
    amqp_heartbeat_seconds: int = Field(
        15,
        ge=2,
        le=600,
        description="A connection to RabbitMQ that is silent for this long is lost, on both sides.",
    )

    @field_validator("amqp_url")
    @classmethod
    def _is_rabbitmq(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value().strip() if value else ""
        if text:
            amqp_urls(text)
        return value if text else None
