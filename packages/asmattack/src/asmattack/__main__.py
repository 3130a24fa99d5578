"""`python -m asmattack`, so that `accelerate launch -m asmattack eval ...` works."""

from asmattack.cli import main

if __name__ == "__main__":
    main()
