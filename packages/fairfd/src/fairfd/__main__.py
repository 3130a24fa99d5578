"""`python -m fairfd`, so that `accelerate launch -m fairfd train ...` works."""

from fairfd.cli import main

if __name__ == "__main__":
    main()
