"""The errors of this backend that are no one else's."""

from __future__ import annotations

from rhapsody.errors import BackendLostError


class PilotLostError(BackendLostError):
    """The pilot ended while the session still needed it: failed, was canceled, or ran out of its runtime."""
