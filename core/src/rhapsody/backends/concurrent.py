"""The entry point of the local backend; `rhapsody.backends.local` implements it."""

from __future__ import annotations

from rhapsody.backends.local.backend import ConcurrentExecutionBackend

__all__ = ["ConcurrentExecutionBackend"]
