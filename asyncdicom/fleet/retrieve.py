"""What was to come and what came: the reconciliation of C-MOVE and C-GET."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable

from asyncdicom.association.received import Received
from asyncdicom.outcome import Status, SubOperations


class Ledger:
    """Counts the instances that arrive at our own storage SCP because of our own C-MOVE requests.

    Their C-STORE requests name the Move Originator's AE title and message ID (PS3.7 section 9.1.1.1), by which they are told
    apart from everything else that arrives. ::

        ledger = Ledger()
        async with StorageSCP(ledger.watch(handler)), Fleet(...) as fleet:
            async for outcome in fleet.move(query, to="ASYNCDICOM", ledger=ledger):
                ...
    """

    def __init__(self) -> None:
        self._kept: defaultdict[tuple[str, int], set[str]] = defaultdict(set)

    def watch(self, handler: Callable[[Received], Awaitable[int]]) -> Callable[[Received], Awaitable[int]]:
        """Return a handler that does the same and keeps the ledger."""

        async def watched(received: Received) -> int:
            status = await handler(received)
            self.note(received, status)
            return status

        return watched

    def note(self, received: Received, status: int) -> None:
        """An instance was answered with a status."""
        if received.move_originator_message_id is None or Status(status).category not in ("Success", "Warning"):
            return
        title = (received.move_originator_ae_title or "").strip()
        self._kept[title, received.move_originator_message_id].add(received.sop_instance_uid)

    def close(self, ae_title: str, message_id: int) -> int:
        """How many different instances were kept for one request; it is forgotten then."""
        return len(self._kept.pop((ae_title, message_id), ()))


def difference(counts: SubOperations, kept: int | None) -> str:
    """What does not add up between a peer's final counts and what was kept here; empty when it does.

    :param kept: instances kept here, None when that is not known
    """
    told = counts.completed + counts.warning
    if kept is None or kept == told:
        return ""
    return f"the peer counts {told} instances as sent, {kept} were kept here"
