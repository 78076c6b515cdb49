"""How asyncdicom names itself to peers and in files (PS3.7 D.3.3.2, PS3.10 section 7.1)."""

from asyncdicom._version import __version__

# Under the UUID-derived root of PS3.5 B.2: no registration is needed, and no one else has it.
IMPLEMENTATION_CLASS_UID = "2.25.302150742893479437811023984475920351829"
IMPLEMENTATION_VERSION = f"ASYNCDICOM_{__version__.replace('.', '')}"[:16]
