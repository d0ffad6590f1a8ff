"""``python -m ftx`` is the same program as ``ftx``."""

from ftx.cli.main import main

if __name__ == "__main__":
    main()
