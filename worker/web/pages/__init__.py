"""The screens, in the order of the navigation; what each must have says screens.py."""

from __future__ import annotations

from packhorse.worker.web.pages import (
    audit,
    completions,
    conversation,
    database,
    dead_letter,
    dead_letter_group,
    dead_letters,
    maintenance,
    message,
    messages,
    overview,
    partitions,
    queue,
    queues,
    schedule,
    schedules,
    services,
    workers,
)
from packhorse.worker.web.screens import Screen, screen

SCREENS: tuple[Screen, ...] = tuple(
    map(
        screen,
        (
            overview,
            queues,
            queue,
            messages,
            message,
            completions,
            conversation,
            dead_letters,
            dead_letter_group,
            dead_letter,
            workers,
            schedules,
            schedule,
            maintenance,
            partitions,
            services,
            database,
            audit,
        ),
    )
)
