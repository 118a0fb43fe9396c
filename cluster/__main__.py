"""`python -m cluster` is `shoal`."""

from cluster.cli import main

if __name__ == "__main__":
    main()
