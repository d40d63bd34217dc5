"""``python -m commands.prepare``: see :mod:`commands.pretrain.prepare`."""

from commands.pretrain.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())
