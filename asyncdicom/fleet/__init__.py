"""Many modalities at once: we call."""
