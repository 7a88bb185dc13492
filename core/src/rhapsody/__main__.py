"""`python -m rhapsody` is the command `rhapsody`."""

from rhapsody.cli import main

main()
