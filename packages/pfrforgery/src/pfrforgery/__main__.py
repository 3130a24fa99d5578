"""`python -m pfrforgery`."""

from pfrforgery.cli import main

if __name__ == "__main__":
    main()
