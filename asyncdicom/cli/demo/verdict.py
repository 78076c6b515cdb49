"""Whether all was as it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asyncdicom.cli.demo.cast import Role
from asyncdicom.cli.demo.senders import Ledger
from asyncdicom.cli.rendering import Column, drawn, table_of
from asyncdicom.monitor.state import ModalityState, States
from asyncdicom.outcome import Reason


@dataclass(frozen=True)
class Finding:
    """What the service says of one modality, and what it was to say.

    :ivar is_quiet: it sends less than expected
    :ivar silence: there was time enough to find that out
    """

    role: Role
    condition: str
    reason: Reason | None
    is_quiet: bool = False
    silence: bool = False

    @property
    def right(self) -> bool:
        """Whether it is what was expected."""
        expected = "up" if self.role.expected == (Reason.OK,) else "down"
        heard = self.is_quiet == self.role.falls_silent or not (self.silence or self.is_quiet)
        return self.condition == expected and self.reason in self.role.expected and heard

    @property
    def wanted(self) -> str:
        """What was expected, in words."""
        quiet = ", quiet" if self.role.falls_silent and self.silence else ""
        return f"{self.role.expected[0]}{quiet}"


def findings(roles: Sequence[Role], states: States, *, silence: bool = False) -> list[Finding]:
    """What the service says of each.

    :param silence: whether there was time enough to find out who falls silent
    """
    known: Mapping[str, ModalityState] = {state.modality.name: state for state in states.all()}
    found = []
    for role in roles:
        state = known[role.name]
        telling = state.telling
        reason = telling.reason if telling is not None else None
        found.append(Finding(role, state.condition, reason, state.quiet_since is not None, silence))
    return found


_COLUMNS: tuple[Column[Finding], ...] = (
    Column("modality", lambda found: found.role.name, fit="whole"),
    Column("it", lambda found: found.role.words),
    Column(
        "service says",
        lambda found: found.condition + ", quiet" * found.is_quiet,
        lambda found: "green" if found.condition == "up" else "red",
    ),
    Column("because", lambda found: str(found.reason or "it was not asked")),
    Column(
        "as it should be",
        lambda found: "yes" if found.right else f"NO, expected {found.wanted}",
        lambda found: "" if found.right else "bold red",
    ),
)


def report(found: Sequence[Finding], ledger: Ledger, wrong: Sequence[str], unreachable: Sequence[str]) -> tuple[str, bool]:
    """The verdict in words.

    :param wrong: what is wrong with instances
    :param unreachable: what is wrong with the pages
    :return: the text, and whether all is as it should be
    """
    lines = [drawn(table_of(_COLUMNS, found)), ""]
    up = sum(finding.condition == "up" for finding in found)
    surprises = sum(not finding.right for finding in found)
    lines.append(
        f"{len(found)} modalities: {up} up, {len(found) - up} down"
        + (f"; {surprises} not as they should be" if surprises else ", each as it should be")
    )
    kept = len(ledger.acknowledged)
    verified = kept - len(wrong)
    lines.append(f"{ledger.sent} instances sent, {kept} different ones acknowledged, {verified} verified by SHA-256")
    lines += [f"  {line}" for line in wrong[:10]]
    if ledger.refused:
        lines.append(f"{len(ledger.refused)} not acknowledged, the first because of: {ledger.refused[0].reason}")
    lines += unreachable
    nothing = not ledger.acknowledged
    if nothing:
        lines.append("nothing was stored")
    right = not (surprises or wrong or ledger.refused or unreachable or nothing)
    lines.append("all is as it should be" if right else "NOT all is as it should be")
    return "\n".join(lines), right
