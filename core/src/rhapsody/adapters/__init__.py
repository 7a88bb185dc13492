"""Other interfaces to the same backends."""
