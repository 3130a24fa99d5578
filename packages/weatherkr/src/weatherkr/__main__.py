"""`python -m weatherkr`, so that `accelerate launch -m weatherkr train ...` works."""

from weatherkr.cli import main

if __name__ == "__main__":
    main()
