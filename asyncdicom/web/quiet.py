"""Modalities that answer and send nothing, although something was to be expected of them."""

from __future__ import annotations

from asyncdicom.monitor.state import ModalityState


def quiet_since(state: ModalityState) -> float | None:
    """Since when a modality is quiet, in seconds since the epoch; None when it is not, or when nothing is expected of it."""
    since: float | None = getattr(state, "quiet_since", None)
    return since


def expected_by(state: ModalityState) -> float | None:
    """By when the next instance of a modality is expected, in seconds since the epoch; None when nothing is expected of it."""
    by: float | None = getattr(state, "expected_by", None)
    return by
