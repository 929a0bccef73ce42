"""python -m recipes.research.fuzz"""

import sys

from recipes.research.fuzz.command import main

if __name__ == "__main__":
    sys.exit(main())
