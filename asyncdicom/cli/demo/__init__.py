"""``asyncdicom demo``: the service at work among simulated modalities, on this machine alone, and a verdict on it."""

from asyncdicom.cli.demo.stage import demo

__all__ = ["demo"]
