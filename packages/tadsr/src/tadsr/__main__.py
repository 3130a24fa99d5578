"""`python -m tadsr`, so that `accelerate launch -m tadsr distill ...` works."""

from tadsr.cli import main

if __name__ == "__main__":
    main()
