"""``python -m dive``: the command ``dive`` of the Python that runs it, installed or not."""

import sys

from dive.command import main

sys.exit(main())
