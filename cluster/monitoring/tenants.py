"""The panels of who uses what, by tenant of the keys."""

from __future__ import annotations

from cluster.monitoring.names import REFUSED, TENANT_REQUESTS, TENANT_SECONDS, TENANT_TOKENS
from cluster.monitoring.panels import Panel, Query, Row, rate

TENANTS = Row(
    "Tenants",
    (
        Panel(
            "Requests by tenant",
            "Let in at the gateway; without keys all are one tenant's.",
            "reqps",
            (Query(rate(TENANT_REQUESTS, "tenant"), "{{tenant}}"),),
        ),
        Panel(
            "Refused",
            "Not let in: no key in force, not for this model, or a limit used up. Whose is not known without a key.",
            "reqps",
            (Query(rate(REFUSED, "tenant, why"), "{{tenant}} {{why}}"),),
            needs="keys",
        ),
        Panel(
            "Tokens by tenant",
            "Sent to and made by language models.",
            "short",
            (Query(rate(TENANT_TOKENS, "tenant"), "{{tenant}}"),),
        ),
        Panel(
            "At work by tenant",
            "Requests of a tenant that are at a model at a time, on average.",
            "short",
            (Query(rate(TENANT_SECONDS, "tenant"), "{{tenant}}"),),
        ),
    ),
)
