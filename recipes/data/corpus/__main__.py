"""Command line: `python -m recipes.data.corpus --out DIR --style wild --seed 0`."""

import argparse
import sys
from pathlib import Path

from .layout import build
from .plan import STYLES


def main() -> None:
    """Build the corpus that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m recipes.data.corpus", description="Build the procedural corpus.")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument("--style", choices=sorted(STYLES), required=True)
    parser.add_argument("--videos", type=int, default=320, help="training videos (default: %(default)s)")
    parser.add_argument("--test-videos", type=int, default=60, help="held-out videos (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=96, help="pixels (default: %(default)s)")
    parser.add_argument("--fps", type=int, default=10, help="frames per second (default: %(default)s)")
    parser.add_argument("--sample-rate", type=int, default=16000, help="of the sound (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument("--force", action="store_true", help="replace a corpus that is already there")
    try:
        build(**vars(parser.parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
