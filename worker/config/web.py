"""Settings of the page: where it listens, who may come (SPEC O6). A part of Settings."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, Field, SecretStr, field_validator

from packhorse.worker.config.lists import NameList

#: First parts of paths that the page has for itself.
WEB_PATHS = ("login", "logout", "static", "healthz", "v1")


class WebSettings(BaseModel):
    """Fields `web_*` of Settings."""

    web_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address of the page; beyond loopback everybody has to say who he is.",
    )
    web_port: int = Field(
        8400, ge=0, le=65535, description="Port of the page. 0: any free one, which is printed."
    )
    web_base_path: str = Field("", description="Path under which a proxy shows the page: `/packhorse`.")
    web_hosts: NameList = Field(
        (),
        description="Names by which browsers reach the page, besides those of loopback; others are refused.",
    )
    web_insecure: bool = Field(
        False, description="Serve the page beyond loopback without TLS and without a proxy that has it."
    )
    web_secret: SecretStr | None = Field(
        None,
        description="Signs sessions of the page, 32 characters at least; none: a new one at each start, so everybody logs in again.",
    )
    web_trusted_proxies: NameList = Field(
        (), description="Addresses and networks of proxies whose headers count: `10.0.0.0/8`."
    )
    web_user_header: str | None = Field(
        None, description="Header in which a trusted proxy says who the visitor is: `X-Forwarded-User`."
    )
    web_role_header: str | None = Field(
        None,
        description="Header in which it says the role: viewer, operator, admin; none: everybody is a viewer.",
    )
    web_api: Literal["off", "on", "only"] = Field(
        "off", description="Enqueue over HTTP, `POST /v1/messages`: beside the page, or instead of it."
    )
    web_api_rate: float = Field(
        1000.0,
        ge=0,
        le=1e9,
        description="Messages a second that one token may send over HTTP; 0: any number.",
    )
    web_databases: dict[str, SecretStr] = Field(
        default_factory=dict,
        description="Several databases on one page, name to connection string; none: database_url. Tokens are those of the first.",
    )

    @field_validator("web_base_path")
    @classmethod
    def _is_path(cls, value: str) -> str:
        if value and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", value):
            raise ValueError("must be empty or a path like /packhorse")
        return value.rstrip("/")

    @field_validator("web_trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                ipaddress.ip_network(text)
            except ValueError:
                raise ValueError(
                    f"{text[:60]!r} is no address and no network; write 10.1.2.3 or 10.0.0.0/8"
                ) from None
        return value

    @field_validator("web_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]+\]", text):
                raise ValueError(
                    f"{text[:60]!r} is not the name of a host; write queue.example.com, without scheme and port"
                )
        return tuple(text.lower() for text in value)

    @field_validator("web_user_header", "web_role_header")
    @classmethod
    def _is_header(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"[A-Za-z0-9-]{1,100}", value):
            raise ValueError("is not the name of a header; write X-Forwarded-User")
        return value or None

    @field_validator("web_secret")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        if text and len(text) < 32:
            raise ValueError("must have 32 characters at least")
        return value if text else None

    @field_validator("web_databases", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            return {}
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError(
                    'must be JSON: {"shop": "postgresql://...", "mail": "postgresql://..."}'
                ) from None
        for name in value if isinstance(value, dict) else ():
            if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", str(name)) or name in WEB_PATHS:
                raise ValueError(
                    f"{str(name)[:40]!r} cannot be the name of a database: lower case, digits and -, none of {', '.join(WEB_PATHS)}"
                )
        return value

    def web_problems(self) -> list[str]:
        """What contradicts each other."""
        problems = []
        if (self.web_user_header or self.web_role_header) and not self.web_trusted_proxies:
            problems.append(
                "web_trusted_proxies: not set, so nobody's web_user_header counts; name the addresses of the proxy"
            )
        if self.web_role_header and not self.web_user_header:
            problems.append(
                "web_user_header: not set, though web_role_header is; a role without a name says nothing about who acts"
            )
        return problems
