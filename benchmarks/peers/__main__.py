"""`python benchmarks/peers`: the study of other libraries, from anywhere in a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

# Worker processes import the adapters as `peers.torch_losses` and so on; they are given this path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.command import app
from unixent_conformance.cli.prompt import print_in_any_encoding

if __name__ == "__main__":
    print_in_any_encoding()
    app(prog_name="python benchmarks/peers")
