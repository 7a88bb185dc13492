"""`python -m rhapsody` is the command `rhapsody`."""

from .cli import main

main()
