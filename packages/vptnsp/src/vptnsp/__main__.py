"""`python -m vptnsp`."""

from vptnsp.cli import main

main()
