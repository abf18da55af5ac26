"""``python -m steerdiff`` is the command ``steerdiff``."""

from steerdiff.scripts.cli import main

if __name__ == "__main__":
    main()
