"""What a journal shows: figures, a page, and files for other tools."""
