"""`python -m selfshot.cli`."""

import sys

from selfshot.cli import main

sys.exit(main())
