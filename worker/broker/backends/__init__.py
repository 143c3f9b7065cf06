"""Result and rate-limiter backends (SPEC W1): on Postgres; on Redis, dramatiq's own with deadlines, when
redis_url is configured.

broker.add_middleware(Results(backend=result_backend(broker)))
broker.add_middleware(GroupCallbacks(rate_limiter_backend(broker)))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dramatiq.rate_limits import RateLimiterBackend
from dramatiq.results import ResultBackend

from packhorse.worker.broker.backends.rate_limits import PostgresRateLimiterBackend
from packhorse.worker.broker.backends.results import PostgresResultBackend
from packhorse.worker.config.wakeups import no_redis_url

if TYPE_CHECKING:
    from packhorse.worker.broker.postgres import PostgresBroker

__all__ = ["PostgresRateLimiterBackend", "PostgresResultBackend", "rate_limiter_backend", "result_backend"]


def result_backend(broker: PostgresBroker) -> ResultBackend:
    """The result backend that the broker's settings ask for. Raises ConfigError when redis_url is no Redis
    URL.
    """
    url = _redis_url(broker)
    if url is None:
        return PostgresResultBackend(broker=broker)
    return _redis("RedisResultBackend", url)  # type: ignore[no-any-return]


def rate_limiter_backend(broker: PostgresBroker) -> RateLimiterBackend:
    """The rate-limiter backend that the broker's settings ask for. Raises ConfigError like result_backend."""
    url = _redis_url(broker)
    if url is None:
        return PostgresRateLimiterBackend(broker=broker)
    return _redis("RedisRateLimiterBackend", url)  # type: ignore[no-any-return]


def _redis_url(broker: PostgresBroker) -> str | None:
    url = broker.settings.redis_url
    return None if url is None else url.get_secret_value() or None


def _redis(name: str, url: str) -> Any:
    """A backend of on_redis.py, which loads the redis package: two MiB that a worker without redis_url has no
    use for.
    """
    module = importlib.import_module(".on_redis", __package__)
    try:
        return getattr(module, name)(url=url)
    except ValueError as error:
        raise no_redis_url(error) from error
