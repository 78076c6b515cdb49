"""The storage provider: they call."""
