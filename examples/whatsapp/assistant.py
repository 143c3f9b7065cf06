"""The assistant that answers free text: an AI service behind the registry (SPEC W10).

While its breaker is open, or after a 429, the messages of the actors that name it rest in the queue and spend
no attempt. One reset time and window of an AI service take minutes; these are short, so that a demo of half a
minute shows a breaker open and close.
"""

from __future__ import annotations

import os
from typing import Any

from packhorse.calls import register_service

assistant = register_service(
    "assistant",
    os.environ.get("ASSISTANT_URL", "https://assistant.example.com/v1"),
    kind="ai_agent",
    timeout=10_000,
    health_check_url="/health",
    health_check_interval_ms=1_000,
    breaker={"failure_ratio": 0.5, "reset_seconds": 2, "window_seconds": 10},
)


#: What it is called in sessions and memories.
AGENT = "assistant"


async def ask(question: str, wamid: str, history: list[dict[str, Any]]) -> str:
    """One answer, which costs money. history: what was said before, oldest first.

    Raises RetryAfter, CircuitOpen and ServiceFailed, each with the outcome that fits.
    """
    response = await assistant.request_async(
        "POST", "/answers", json={"question": question, "history": history, "metadata": {"wamid": wamid}}
    )
    return str(response.json()["answer"])
