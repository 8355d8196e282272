"""`python -m planaria` is the command `planaria`."""

from __future__ import annotations

from planaria.cli.app import main

if __name__ == "__main__":
    main()
