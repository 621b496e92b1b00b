"""``python -m tide``, for launchers such as ``torchrun -m tide``."""

import sys

from tide.cli.app import main

sys.exit(main())
