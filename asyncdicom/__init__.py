"""asyncdicom: the asyncio service and library for fleets of DICOM devices."""

from asyncdicom._version import __version__

__all__ = ["__version__"]
