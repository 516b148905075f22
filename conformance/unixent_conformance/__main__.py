"""`python -m unixent_conformance`: what `unixent conformance` is."""

from __future__ import annotations

import sys

from unixent.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "conformance")
    main()
