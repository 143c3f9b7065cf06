"""A WhatsApp shop on the platform's library: the webhook, and the actor that answers. SERVICE_URL is the AI
agent, AI_TIMEOUT_MS its limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import dramatiq
import psycopg

import packhorse
from packhorse import platform
from tests.support.notes import note

PER_MINUTE, BURST = 60.0, 5


def webhook_on(url: str) -> Callable[[Any, Any], platform.SafeResponse]:
    """The handler of POST /webhook: body and headers in, an answer out."""

    @platform.safe_http_handler("whatsapp webhook")
    def webhook(body: Any, headers: Any) -> dict[str, Any]:
        message = body["message"]
        if "from" not in message:
            raise platform.WorkflowError("the message has no sender", "NO_SENDER", recoverable=False)
        with psycopg.connect(url) as connection:
            if not platform.is_new_message(message["id"], packhorse.correlation_id(), connection=connection):
                return {"status": "duplicate"}
            platform.record_webhook_event(
                "incoming",
                "message",
                webhook_id=message["id"],
                source="whatsapp",
                payload=body,
                headers=headers,
                status="received",
                connection=connection,
            )
            packhorse.enqueue(connection, "reply", message, conversation_key=f"wa:{message['from']}")
        return {"status": "accepted"}

    return webhook


@dramatiq.actor(actor_name="reply")
def reply(id: str, text: str, **message: Any) -> None:
    """Answer one message of a person; a text `fail N` fails N times."""
    started = time.monotonic()
    phone = message["from"]
    platform.limit_person(phone, PER_MINUTE, BURST)
    note("start", id)
    running = packhorse.current_message()
    assert running is not None
    if text.startswith("fail") and running.attempt <= int(text.split()[1]):
        raise platform.WorkflowError("not this time", "NOT_YET")
    session = platform.get_or_create_session(phone, "shop")
    packhorse.step("said", lambda: platform.add_message(session.id, "user", text))
    if text.startswith("context "):
        platform.update_context(session.id, {**session.context, "said": text.split()[1]})
    memory = platform.get_or_create_conversation_memory(phone, "shop")
    answer = packhorse.step("answer", lambda: platform.with_timeout(lambda: ask(text), _limit(), "ai agent"))
    packhorse.step(
        "remembered",
        lambda: platform.update_conversation_memory(memory.id, {"role": "assistant", "content": answer}),
    )
    order(phone, text)
    note("effect", id)
    platform.mark_message_processed(id, packhorse.correlation_id(), (time.monotonic() - started) * 1000)


def order(phone: str, text: str) -> None:
    """A workflow in three steps: order food, show menu, choose items."""
    if text == "order food":
        platform.start_workflow("order", "order_food", user_phone=phone)
    elif text in ("show menu", "choose items"):
        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
            found = connection.execute(
                "select id from public.workflow_states where user_phone = %s and status = 'active'", (phone,)
            ).fetchone()
        assert found is not None
        platform.advance_workflow(found[0], text.replace(" ", "_"), {"last": text})
        if text == "choose items":
            platform.finish_workflow(found[0])


def ask(text: str) -> str:
    """The answer of the AI agent."""
    return str(platform.get_service("ai").request("POST", "/answer", json={"text": text}).json()["path"])


def _limit() -> Any:
    limit = os.environ.get("AI_TIMEOUT_MS")
    return float(limit) if limit else "ai_agent"


if "SERVICE_URL" in os.environ:
    platform.register_service("ai", os.environ["SERVICE_URL"], timeout=120_000)
