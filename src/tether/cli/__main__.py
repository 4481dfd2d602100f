"""`python -m tether.cli`, as torchrun calls it."""

import sys

from tether.cli import main

if __name__ == "__main__":
    sys.exit(main())
