"""What the page can change: one table, by name. An act is a form and one function of worker/ops or
worker/store.
"""

from __future__ import annotations

from packhorse.worker.web.acts.dead_letters import DEAD_LETTER_ACTS
from packhorse.worker.web.acts.editing import EDITING_ACTS
from packhorse.worker.web.acts.maintenance import MAINTENANCE_ACTS
from packhorse.worker.web.acts.messages import MESSAGE_ACTS
from packhorse.worker.web.acts.others import OTHER_ACTS
from packhorse.worker.web.acts.queues import QUEUE_ACTS
from packhorse.worker.web.forms import ActForm

ACTS: dict[str, ActForm] = {
    act.name: act
    for act in (*MESSAGE_ACTS, *EDITING_ACTS, *DEAD_LETTER_ACTS, *QUEUE_ACTS, *MAINTENANCE_ACTS, *OTHER_ACTS)
}
