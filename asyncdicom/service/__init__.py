"""The composition root: configuration, logs, start and drain."""
