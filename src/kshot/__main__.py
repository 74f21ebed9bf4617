"""``python -m kshot`` is the command ``kshot``."""

import sys

from kshot.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
