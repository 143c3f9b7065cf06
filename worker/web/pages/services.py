"""Services that handlers call, their breakers, and scopes that are parked."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.worker.records import Row
from packhorse.worker.store import scopes, services
from packhorse.worker.web.reading import Reader
from packhorse.worker.web.screens import Query

PATH = "/services"
TITLE = "Services"
NAV = "Services"
TEMPLATE = "services.html"


@dataclass(frozen=True, slots=True)
class ServicesPage:
    """endpoints: declared within a day. scopes: parked or probing, longest first."""

    endpoints: list[Row]
    scopes: list[Row]
    command: str


async def load(reader: Reader, query: Query) -> ServicesPage:
    """No parameters."""
    endpoints = await reader.ask("services", 2.0, services.list_endpoints)
    return ServicesPage(
        endpoints, await reader.ask("scopes", 5.0, scopes.list_scopes), "packhorse service list"
    )
