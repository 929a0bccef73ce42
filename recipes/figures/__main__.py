"""python -m recipes.figures"""

import sys

from recipes.figures.command import main

if __name__ == "__main__":
    sys.exit(main())
