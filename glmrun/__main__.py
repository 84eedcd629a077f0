"""`python -m glmrun`: the same as the console script."""

from glmrun.cli import main

main()
