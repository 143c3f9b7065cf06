"""The screens, in the order of the navigation; what each must have says screens.py."""

from __future__ import annotations

from packhorse.worker.web.pages import overview
from packhorse.worker.web.screens import Screen, screen

SCREENS: tuple[Screen, ...] = tuple(map(screen, (overview,)))
