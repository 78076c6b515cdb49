"""One awaitable association."""
