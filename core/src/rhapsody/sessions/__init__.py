"""What users hold and wait for: sessions, futures, streams."""
