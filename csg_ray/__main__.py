"""`python -m csg_ray` is `csg-ray`."""

import sys

from csg_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
