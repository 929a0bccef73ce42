"""python -m recipes.research.soak"""

import sys

from recipes.research.soak.command import main

if __name__ == "__main__":
    sys.exit(main())
