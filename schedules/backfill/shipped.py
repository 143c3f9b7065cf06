"""The backfills that Packhorse ships, in the order in which a platform is moved (SPEC C1-C4)."""

from __future__ import annotations

from packhorse.schedules.backfill.agent_sessions import AgentSessions
from packhorse.schedules.backfill.base import Backfill
from packhorse.schedules.backfill.deprecated import (
    BookingAuthorizations,
    EttaConversations,
    EttaMessages,
    PricingFaqs,
    ReferralCredits,
    Reviews,
)
from packhorse.schedules.backfill.logs import (
    AgentErrorLogs,
    AuditLogs,
    SecurityAuditLog,
    SystemLogs,
    TripStatusAudit,
    WebhookDeliveryLog,
    WebhookLogs,
)
from packhorse.schedules.backfill.session_ids import SessionIds

SHIPPED: dict[str, type[Backfill]] = {
    kind.name: kind
    for kind in (
        AgentSessions,
        WebhookLogs,
        WebhookDeliveryLog,
        AuditLogs,
        SystemLogs,
        SecurityAuditLog,
        AgentErrorLogs,
        TripStatusAudit,
        SessionIds,
        EttaConversations,
        EttaMessages,
        Reviews,
        BookingAuthorizations,
        ReferralCredits,
        PricingFaqs,
    )
}
