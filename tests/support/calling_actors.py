"""An actor that logs, by the standard library and by structlog, and calls a service as applications do."""

from __future__ import annotations

import logging
import urllib.request

import dramatiq
import structlog

import packhorse

logger = logging.getLogger("shop")


@dramatiq.actor(queue_name="default", actor_name="calls")
def calls(url: str, more: bool = True) -> None:
    logger.info("about to call")
    structlog.get_logger("shop.events").info("calling", stage=1)
    request = urllib.request.Request(url, headers={"X-Correlation-ID": packhorse.correlation_id()})
    with urllib.request.urlopen(request, timeout=10):
        pass
    if more:
        calls.send(url, more=False)
    else:
        raise RuntimeError("after the call")
