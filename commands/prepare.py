"""``python -m commands.prepare``: see :mod:`commands.pretrain.data.prepare_shards`."""

from commands.pretrain.data.prepare_shards import main

if __name__ == "__main__":
    raise SystemExit(main())
