"""What we keep."""
