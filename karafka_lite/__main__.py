"""``python -m karafka_lite``: the command line without its installed script."""

from __future__ import annotations

import sys

from karafka_lite.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
