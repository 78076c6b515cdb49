"""``python -m asyncdicom`` is the command ``asyncdicom``."""

from asyncdicom.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
