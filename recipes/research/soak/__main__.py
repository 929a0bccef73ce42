"""python -m recipes.research.soak"""

from recipes import cli
from recipes.research.soak.command import main

if __name__ == "__main__":
    cli.exit(main)
