"""What watches a session and is off unless it is asked for: the journal, the report, telemetry."""
