"""`python -m mediant` is the command line."""

import sys

from mediant.cli import main

sys.exit(main())
