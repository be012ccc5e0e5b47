"""``python -m bharateo``, which is also what ``torchrun -m bharateo`` runs."""

import sys

from bharateo.verbs.cli import main

sys.exit(main())
