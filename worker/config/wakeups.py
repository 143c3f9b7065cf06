"""Settings of how idle workers hear of messages (SPEC Q10). A part of Settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, Field, SecretStr

from packhorse.worker.errors import ConfigError


class WakeupSettings(BaseModel):
    """`wakeups`, and what it depends on."""

    pooler: bool = Field(
        False,
        description="database_url goes through a transaction pooler: no prepared statements, no LISTEN on it.",
    )
    listen_url: SecretStr | None = Field(
        None, description="Direct connection string for LISTEN when database_url goes through a pooler."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis for dramatiq's own result and rate-limiter backends, and for wake-ups; optional.",
    )
    wakeups: Literal["auto", "listen", "redis", "poll"] = Field(
        "auto",
        description="How idle workers hear of messages. auto: `listen` where a connection is direct, else `redis` with redis_url, else `poll`.",
    )

    @property
    def can_listen(self) -> bool:
        """Is there a connection to LISTEN on? Behind a transaction pooler only one of its own."""
        return not self.pooler or self.listen_url is not None

    @property
    def woken_by(self) -> Literal["listen", "redis", "poll"]:
        """How idle workers hear of messages; polling goes on with each of them."""
        if self.wakeups != "auto":
            return self.wakeups
        if self.can_listen:
            return "listen"
        return "redis" if self.has_redis else "poll"

    @property
    def producers_publish(self) -> bool:
        """Do producers wake workers by Redis? Not where one process of the fleet repeats there what they
        notify.
        """
        return self.woken_by == "redis" and self.listen_url is None

    @property
    def has_redis(self) -> bool:
        return self.redis_url is not None and bool(self.redis_url.get_secret_value())

    def redis(self) -> str:
        """The URL. Raises ConfigError when there is none."""
        if self.redis_url is None or not self.has_redis:
            raise ConfigError(["redis_url: not set"])
        return self.redis_url.get_secret_value()

    def wakeup_problems(self) -> Iterator[str]:
        """What does not go together."""
        if self.wakeups == "listen" and not self.can_listen:
            yield "wakeups: listen needs a direct connection, and a pooler is in front of database_url; set listen_url, or wakeups = auto"
        if self.wakeups == "redis" and not self.has_redis:
            yield "wakeups: redis needs redis_url; set it, or wakeups = auto"


def no_redis_url(error: ValueError) -> ConfigError:
    """What redis-py says of a URL that it refuses: it names the schemes, not the URL."""
    return ConfigError([f"redis_url: not a Redis URL (redis://host:6379/0): {error}"])
