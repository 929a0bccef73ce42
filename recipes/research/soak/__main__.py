"""python -m recipes.research.soak"""

from recipes import cli
from recipes.research.soak.command import COMMAND

if __name__ == "__main__":
    cli.exit(COMMAND.main)
