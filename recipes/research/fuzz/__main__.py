"""python -m recipes.research.fuzz"""

from recipes import cli
from recipes.research.fuzz.command import main

if __name__ == "__main__":
    cli.exit(main)
