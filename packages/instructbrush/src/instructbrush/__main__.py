"""`python -m instructbrush`, so that `accelerate launch -m instructbrush train ...` works."""

from instructbrush.cli import main

if __name__ == "__main__":
    main()
