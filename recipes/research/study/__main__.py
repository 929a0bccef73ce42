"""python -m recipes.research.study"""

from recipes import cli
from recipes.research.study.command import main

if __name__ == "__main__":
    cli.exit(main)
