"""Telemetry of a session by OpenTelemetry: spans, metrics, events; imported once a session is asked for it."""
