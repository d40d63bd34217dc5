"""From the entries of a config's ``[[data.sources]]`` to the training data."""

from __future__ import annotations

from pathlib import Path

from commands.base.factories import from_factory
from commands.pretrain.config.sections import Config, SourceSettings

from .folder_source import FolderSource
from .parquet_source import ParquetSource
from .pictures import DataError
from .shard_source import ShardSource
from .sources import EncodedSource, Source
from .training_data import TrainingData


def open_data(config: Config) -> TrainingData:
    """The training data of a config.

    Raises:
        DataError: a source is missing, empty or of another kind, or its factory refuses its options.
        FactoryError: there is no such factory.
    """
    sources = [open_source(settings) for settings in config.data.sources]
    weights = [settings.weight for settings in config.data.sources]
    return TrainingData(sources, weights, config.domain.image_size, config.training.seed)


def open_source(settings: SourceSettings) -> Source:
    """One source of a config.

    Raises:
        DataError, FactoryError: see :func:`open_data`.
    """
    if settings.kind == "python":
        return _made_by_factory(settings)
    path = Path(settings.path)
    source: EncodedSource
    if settings.kind == "folder":
        source = FolderSource(path)
    elif settings.kind == "shards":
        source = ShardSource(path, settings.window)
    else:
        source = ParquetSource(path, settings.window, settings.column)
    source.alpha_mask = settings.alpha_mask
    return source


def _made_by_factory(settings: SourceSettings) -> Source:
    factory, options = from_factory(settings.factory), settings.options
    try:
        made: Source = factory(**options)
    except DataError:
        raise
    except (TypeError, ValueError) as error:
        raise DataError(f"Data source {settings.factory} refuses its options {options}: {error}") from error
    if not sum(made.parts):
        raise DataError(f"Source {settings.factory} has no row with the options {options}: correct them.")
    return made
