"""Build the procedural corpus: moving objects, their sounds, and narrations that belong to them or do not.

python -m recipes.data.corpus out=corpora/mine style=wild seed=1
"""

from recipes import cli
from recipes.cli import Command
from recipes.data.corpus.folder import megabytes
from recipes.data.corpus.layout import Corpus, build, check_out, summary


def run(corpus: Corpus) -> None:
    """Builds the corpus, and says what it holds."""
    folder = build(corpus)
    print(f"{summary(corpus)}, {megabytes(folder):.0f} MB")


def plan(corpus: Corpus) -> str:
    """Checks the folder, and says what the corpus would hold."""
    check_out(corpus)
    return summary(corpus)


COMMAND = Command("recipes.data.corpus", __doc__, Corpus, run, plan)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
