"""Backends that are broken on purpose, each in one way, and the test of the suite that must catch it.

Run by `test_mutants.py` in one pytest of their own. `caught_by` names the test, `says` is what an author has to read in
its message to mend the backend.
"""

from . import cancels, fields, lifecycles, omissions, policies, reports
from .base import MUTANTS

__all__ = ["MUTANTS", "cancels", "fields", "lifecycles", "omissions", "policies", "reports"]
