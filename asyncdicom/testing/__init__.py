"""Simulated modalities and faults, for our tests and for users' own."""
