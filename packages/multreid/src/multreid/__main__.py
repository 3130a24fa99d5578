"""`python -m multreid`."""

from multreid.cli import main

main()
