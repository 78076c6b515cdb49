"""Who we tell: events go from the index's outbox to every target that wants them, at least once."""
