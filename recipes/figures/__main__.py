"""python -m recipes.figures"""

from recipes import cli
from recipes.figures.command import main

if __name__ == "__main__":
    cli.exit(main)
