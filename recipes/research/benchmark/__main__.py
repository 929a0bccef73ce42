"""python -m recipes.research.benchmark"""

import sys

from recipes.research.benchmark.command import main

if __name__ == "__main__":
    sys.exit(main())
