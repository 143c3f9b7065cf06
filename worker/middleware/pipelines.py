"""dramatiq's Pipelines, which looks for the next message before it imports anything."""

from __future__ import annotations

from typing import Any

from dramatiq.middleware import Pipelines as StockPipelines


class Pipelines(StockPipelines):
    """The same behaviour; messages outside a pipeline pay for one dictionary look-up only."""

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None) -> None:
        if "pipe_target" in message.options:
            super().after_process_message(broker, message, result=result, exception=exception)
