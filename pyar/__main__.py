"""`python -m pyar`, the same as the command `pyar`."""

import sys

from pyar.cli import main

sys.exit(main())
