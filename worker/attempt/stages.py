"""How far one attempt has come in the process that holds its message.

    CLAIMED -> RUNNING -> RETURNED -> ENDED

It has one stage at a time, which ClaimedMessage.move() alone changes. The thread that runs the handler moves
it until it hands the message back; from then on the fetcher does. Others (timekeeper, heartbeat, main thread)
only read. Whether the lease was lost meanwhile is no stage: the handler of such a message may run on for a
while (`ClaimedMessage.lost`).
"""

from __future__ import annotations

from enum import IntEnum


class AttemptStage(IntEnum):
    """CLAIMED: it waits here. RUNNING: its handler runs, or hooks of middleware do. COMMITTED: a
    transactional handler has committed its completion; hooks may still run. RETURNED: handler and hooks are
    through, its outcome is to be written. REFUSED: the database refuses to write that; it is tried again.
    ENDED: nothing is left to write.
    """

    CLAIMED = 0
    RUNNING = 1
    COMMITTED = 2
    RETURNED = 3
    REFUSED = 4
    ENDED = 5


#: stage -> those that may come next. What may not start returns at once, and so does every message of
#: dramatiq's own Worker, whose handlers have no slot. What has not started is released, and so it ends.
NEXT: dict[AttemptStage, tuple[AttemptStage, ...]] = {
    AttemptStage.CLAIMED: (AttemptStage.RUNNING, AttemptStage.RETURNED, AttemptStage.ENDED),
    AttemptStage.RUNNING: (AttemptStage.RETURNED, AttemptStage.COMMITTED),
    AttemptStage.COMMITTED: (AttemptStage.ENDED,),
    AttemptStage.RETURNED: (AttemptStage.ENDED, AttemptStage.REFUSED),
    AttemptStage.REFUSED: (AttemptStage.ENDED,),
    AttemptStage.ENDED: (),
}
#: Its handler or its hooks run.
AT_WORK = (AttemptStage.RUNNING, AttemptStage.COMMITTED)
#: The database knows its outcome.
WRITTEN = (AttemptStage.ENDED, AttemptStage.COMMITTED)
