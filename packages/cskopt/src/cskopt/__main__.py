"""`python -m cskopt`."""

from cskopt.cli import main

main()
