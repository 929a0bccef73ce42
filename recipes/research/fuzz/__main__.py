"""python -m recipes.research.fuzz"""

from recipes import cli
from recipes.research.fuzz.command import COMMAND

if __name__ == "__main__":
    cli.exit(COMMAND.main)
