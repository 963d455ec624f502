"""`python -m memfactory` is `memfactory`."""

from memfactory.cli import main

if __name__ == "__main__":
    main()
