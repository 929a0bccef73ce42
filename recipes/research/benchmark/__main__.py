"""python -m recipes.research.benchmark"""

from recipes import cli
from recipes.research.benchmark.command import main

if __name__ == "__main__":
    cli.exit(main)
