"""The handlers: ordinary dramatiq actors, one per kind of message. `packhorse worker
examples.whatsapp.actors` runs them.

An actor's arguments are the keys of the payload that webhook.py enqueued. An actor that returns is done, one
that raises is tried again with the queue's backoff; its conversation waits meanwhile (SPEC P4), all others go
on. An `async def` is a coroutine: thousands of them can wait for a slow service at the same time.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from typing import Any
from uuid import UUID

import dramatiq

import packhorse
from examples.whatsapp import salon
from examples.whatsapp.assistant import AGENT, ask
from examples.whatsapp.client import fetch_media, send_text
from packhorse import platform

logger = logging.getLogger("examples.whatsapp")


@dramatiq.actor(queue_name="whatsapp", services=["assistant"], time_limit_class="ai_agent")
async def whatsapp_text(messages: list[dict[str, Any]]) -> None:
    """Ask the assistant, which knows what was said before, send its answer, and remember both. One answer to
    all that a person has written in a row; it quotes the last of it.

    The answer is a step: when the reply fails, the next attempt has it and nothing is paid for twice. While
    the assistant is down, the queue keeps these messages (`services`), and they spend no attempt.
    """
    last = messages[-1]
    business, phone, wamid = last["business"], last["phone"], last["wamid"]
    question = "\n".join(entry["message"]["text"]["body"] for entry in messages)
    session = await platform.get_or_create_session_async(phone, AGENT)
    memory = await platform.get_or_create_conversation_memory_async(phone, AGENT)
    answer = await packhorse.step_async("answer", ask, question, wamid, memory.conversation_history)
    await asyncio.to_thread(send_text, business, phone, answer, wamid)
    await packhorse.step_async("remember", remember, session.id, memory.id, wamid, question, answer)


async def remember(session_id: UUID, memory_id: UUID, wamid: str, question: str, answer: str) -> None:
    """Both sides of the conversation: whole in the session, the last twenty for the assistant in its
    memory.
    """
    for role, content in (("user", question), ("assistant", answer)):
        await platform.add_message_async(session_id, role, content, {"wamid": wamid})
        await platform.update_conversation_memory_async(memory_id, {"role": role, "content": content})


@dramatiq.actor(queue_name="whatsapp", transactional=True)
def whatsapp_interactive(business: str, phone: str, wamid: str, message: dict[str, Any]) -> None:
    """Answer a tap on a button or on a line of a list; `book:<date>` books a day, `cancel-appointment`
    cancels it.

    Transactional: the booking, its workflow and its reminder are written with the message's completion, or
    not at all, so a reply that fails books nothing twice (SPEC P3). Deliberately careless about dates that do
    not exist: `book:2026-02-30` fails at every attempt and becomes a dead letter.
    """
    interactive = message["interactive"]
    choice = interactive[interactive["type"]]
    verb, _, argument = choice["id"].partition(":")
    if verb == "book":
        day = datetime.date.fromisoformat(argument)
        moved = salon.reserve(packhorse.current_connection(), business, phone, day)
        reply = f"{'Moved to' if moved else 'Booked:'} {day:%A, %d %B %Y}."
    elif verb == "cancel-appointment":
        reply = (
            "Cancelled."
            if salon.cancel(packhorse.current_connection(), phone)
            else "You have no appointment."
        )
    else:
        reply = f"You chose: {choice['title']}."
    send_text(business, phone, reply, wamid)


@dramatiq.actor(queue_name="whatsapp", transactional=True)
def whatsapp_reminder(business: str, phone: str, reminder_id: int, workflow_id: str, booking_id: int) -> None:
    """Remind a person of a booking; the schedule `job.due_reminders` sends this message."""
    if salon.remind(packhorse.current_connection(), reminder_id, workflow_id, booking_id):
        send_text(business, phone, "We look forward to seeing you.", f"reminder:{reminder_id}")


@dramatiq.actor(queue_name="whatsapp", time_limit_class="media")
def whatsapp_media(business: str, phone: str, wamid: str, message: dict[str, Any]) -> None:
    """Fetch a picture, document or voice message and confirm it. May be slow; only its own conversation
    waits.
    """
    kind = message["type"]
    content = fetch_media(message[kind]["id"])
    send_text(business, phone, f"Received your {kind} ({len(content)} bytes).", wamid)


@dramatiq.actor(queue_name="whatsapp")
def whatsapp_location(business: str, phone: str, wamid: str, message: dict[str, Any]) -> None:
    """Answer a location."""
    place = message["location"]
    send_text(business, phone, f"Found you at {place['latitude']:.3f}, {place['longitude']:.3f}.", wamid)


@dramatiq.actor(queue_name="whatsapp")
def whatsapp_status(business: str, wamid: str, status: str, codes: list[int]) -> None:
    """A reply of ours was sent, delivered, read, or failed. No answer; a failure is worth a line in the
    log.
    """
    if status == "failed":
        logger.warning("whatsapp_delivery_failed business=%s codes=%s", business, codes)


@dramatiq.actor(queue_name="whatsapp")
def whatsapp_account_error(business: str, error: dict[str, Any]) -> None:
    """Meta reports a problem of the whole account."""
    logger.warning("whatsapp_account_error business=%s code=%s", business, error["code"])


@dramatiq.actor(queue_name="whatsapp")
def whatsapp_unsupported(business: str, phone: str, wamid: str, message: dict[str, Any]) -> None:
    """A kind that this program does not know: nothing to do, and no retry can change that. It ends as
    cancelled.
    """
    raise packhorse.Cancel(f"no handler for messages of type {message['type'][:40]}")
