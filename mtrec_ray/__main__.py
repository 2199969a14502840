"""`python -m mtrec_ray` is `mtrec`."""

from mtrec_ray.cli import main

main()
