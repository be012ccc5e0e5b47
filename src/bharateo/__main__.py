"""``python -m bharateo``, which is also what ``torchrun -m bharateo`` runs."""

import sys

from bharateo.cli import main

sys.exit(main())
