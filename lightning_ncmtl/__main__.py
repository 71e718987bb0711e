"""``python -m lightning_ncmtl`` is the same as ``ncmtl``."""

from lightning_ncmtl.main import main

if __name__ == "__main__":
    main()
