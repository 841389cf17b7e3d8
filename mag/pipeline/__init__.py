r"""A log and a model in one: fitted, asked by raw ids, kept up to date, saved whole."""

from mag.pipeline.pipeline import Pipeline

__all__ = ['Pipeline']
