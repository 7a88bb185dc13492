"""`python -m rhapsody.worker IN OUT`: runs the batch in the file IN, and appends its frames to the file OUT."""

from __future__ import annotations

import sys

from rhapsody.worker.files import run_file


def main() -> None:
    """Run the batch that the arguments name; `-` is standard input, or output."""
    if len(sys.argv) != 3:
        sys.exit("usage: python -m rhapsody.worker IN OUT, where IN holds a batch, and frames are appended to OUT")
    run_file(sys.argv[1], sys.argv[2])


if __name__ == "__main__":
    main()
