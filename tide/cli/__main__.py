"""``python -m tide.cli``."""

import sys

from tide.cli.app import main

sys.exit(main())
