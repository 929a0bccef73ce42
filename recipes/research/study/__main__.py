"""python -m recipes.research.study"""

import sys

from recipes.research.study.command import main

if __name__ == "__main__":
    sys.exit(main())
