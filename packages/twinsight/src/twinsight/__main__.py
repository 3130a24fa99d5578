"""`python -m twinsight`."""

from twinsight.cli import main

if __name__ == "__main__":
    main()
