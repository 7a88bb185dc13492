"""The journal of a session: an SQLite file of what its tasks were, what happened to them and what came of them."""
