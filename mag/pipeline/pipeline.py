import copy
import math
import os
import os.path as osp
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.checks import check_choice, check_integers
from mag.datasets import ClickDataset, EventLog, LogSchema
from mag.files import replacing
from mag.logits import Logits, as_logits, log_both, probabilities
from mag.online import Compiled, Program
from mag.pipeline.followed_log import follow
from mag.pipeline.known_log import KnownLog
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes import RECIPES, STORE_RECIPES, Recipe
from mag.pipeline.request import Request, example_of, read_request, request_of
from mag.pipeline.saved import (
    read_safetensors,
    read_whole,
    write_manifest,
    write_safetensors,
    writing,
)
from mag.pipeline.snapshot import events_of, pieces_of, require_served
from mag.pipeline.snapshot import write as write_snapshot_of
from mag.pipeline.stored_log import StoredLog
from mag.transforms import TemporalSplit

if TYPE_CHECKING:
    from mag.online import EventStream, IdRegister
    from mag.store import Store

_BATCH = 8192
# What a program is compared by is drawn from so many rows.
_NUM_EXAMPLES = 97
_NODES = ('user', 'item')


class Pipeline:
    r"""What stands between a raw log and a score: the meaning of its columns, its ids, the fitted
    transforms, the graph as of now, and the model.

    .. code-block:: python

        pipeline = Pipeline('count_net').fit(LogSchema.load('shop.yaml'))
        pipeline.save('shop/')

        pipeline = Pipeline.load('shop/')                       # another process, without the log
        pipeline.score('ann', ['tea', 'rice'], context={'device': 'phone'})
        pipeline.update('exports/today.csv')
        pipeline.evaluate('exports/tomorrow.csv')

    Users, items and contexts are told by their raw ids and names. One that is unknown has a score,
    too: that of somebody, or something, of which nothing is known.

    =================== ==================================== =======================================
    model               reads of a log                       arguments, beside those of the model
    =================== ==================================== =======================================
    :obj:`"count_net"`  attributes, contexts, query          :obj:`groups`: see
                                                             :class:`~mag.transforms.MacroCoarsen`;
                                                             by default users in 20 clusters, items
                                                             by :obj:`category`, or in 50
    :obj:`"macgnn"`     clicks, and attributes to group by   :obj:`groups`, of one resolution
    :obj:`"gmcm"`       attributes, contexts, query,
                        features, modalities, the conversion
                        and behaviors
    :obj:`"srjgraph"`   attributes, contexts, query, domain  :obj:`widths`, :obj:`attribute`: see
                                                             :class:`~mag.loader.PathLoader`
    :obj:`"hyperctr"`   modalities                           :obj:`granularity`: seconds of a slot,
                                                             :obj:`length`: of a history
    :obj:`"simcen"`     attributes, contexts, query,         :obj:`num_buckets`: of each feature,
                        features                             see
                                                             :class:`~mag.transforms.BucketNumbers`
    =================== ==================================== =======================================

    What a model does not read is left out; a log with times at which clicks and labels are known is
    refused.

    A log that does not fit in memory is fitted from its :class:`~mag.store.Store`, by
    :obj:`"count_net"` and :obj:`"macgnn"`, and nothing else changes but this:

    .. code-block:: python

        Pipeline('macgnn').fit('store/').save('shop/')

    Groups and split are those of the store. Rows are streamed from its log, and read what it counts
    as of the cutoff before them, also :obj:`"count_net"`, whose training rows read what came before
    themselves otherwise. What is saved holds no log, but says where the store is. :meth:`update` is
    refused: a store of the longer log is built anew.

    Args:
        model (str): The name of the model.
        split (TemporalSplit, optional): What is trained on, and what training stops and is tested
            on. By default as in :obj:`docs/your_log.md`.
        batch_size (int, optional): Rows of a step of training. (default: :obj:`1024`)
        max_epochs (int, optional): At most this many passes over the training rows.
            (default: :obj:`20`)
        patience (int, optional): Stop after this many validations without a better value.
            (default: :obj:`5`)
        seed (int, optional): Seed of clusters, paths, weights, dropout and the order of rows.
            (default: :obj:`0`)
        **arguments (optional): Those of the table, and of the model, as values of JSON.

    Attributes:
        metrics (dict[str, dict[str, float]]): Those of :obj:`"validation"` and :obj:`"test"`, as
            of :meth:`fit`.

    Raises:
        TypeError: If an argument is of another type, or none of the model.
        ValueError: If an argument is out of range, or users are split by their own logs, where a
            cutoff is no moment that a request comes after.
    """

    def __init__(
        self,
        model: str,
        split: TemporalSplit | None = None,
        batch_size: int = 1024,
        max_epochs: int = 20,
        patience: int = 5,
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        check_choice(RECIPES, model=model)
        check_integers(1, batch_size=batch_size, max_epochs=max_epochs, patience=patience)
        check_integers(0, below=2**31, seed=seed)
        if split is not None and not isinstance(split, TemporalSplit):
            raise TypeError(f"'split' must be a TemporalSplit, but got {split!r}.")
        if split is not None and split.by != 'global':
            raise ValueError(
                f"'split' must cut at moments that requests come after, by='global', but got "
                f'{split!r}.'
            )
        self.model_name = model
        self._given_split = split
        self.split = TemporalSplit(**RECIPES[model].split) if split is None else split
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.seed = seed
        self.arguments = arguments
        self.metrics: dict[str, dict[str, float]] = {}
        self._recipe = RECIPES[model](seed, **arguments)
        self._log: KnownLog | None = None

    def fit(
        self,
        log: 'ClickDataset | LogSchema | Store | str | os.PathLike[str]',
        root: str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> 'Pipeline':
        r"""Splits a log by time, fits the transforms on its training part, trains the model until
        validation no longer improves, and reads all of the log as history.

        Args:
            log (ClickDataset, LogSchema, Store or str): A dataset such as
                :class:`~mag.datasets.EventLog`, what one reads, or the YAML or JSON file that says
                it; or a :class:`~mag.store.Store`, or its folder.
            root (str, optional): Where the cache of the log goes, if it is no dataset. Without one
                it is read, and nothing is left. (default: :obj:`None`)
            directory (str, optional): Where checkpoints and learning curves go, see
                :func:`mag.training.fit`. (default: :obj:`None`)
            progress (bool, optional): If set to :obj:`False`, no progress is shown.
                (default: :obj:`True`)

        Raises:
            FileNotFoundError: If :obj:`log` is a folder, but no store.
            ModuleNotFoundError: If it is a store, and the extra :obj:`scale` is not installed.
            TypeError: If :obj:`log` is something else.
            ValueError: If the log cannot be read, split or learned from, or is a store that the
                model does not read, or of other groups or another split than were asked for.
        """
        known, schema = self._open(log, root, progress)
        # A fit that fails leaves what was there.
        recipe = _recipes(known)[self.model_name](self.seed, **self.arguments)
        split = known.split(self._given_split, TemporalSplit(**RECIPES[self.model_name].split))
        model, metrics = self._train(recipe, known, split, directory, progress)
        self._recipe = recipe.keep(known)
        self._served = self._recipe.serve(known)
        if recipe.is_in_model:
            model.grow(self._served.source)  # type: ignore[operator]
        self._model, self.metrics, self.split = model, metrics, split
        self._log, self._schema = known, schema
        return self

    def _open(self, log: Any, root: Any, progress: bool) -> tuple[KnownLog, dict[str, Any]]:
        r"""A log, and what a schema says besides where its tables are."""
        reads = self._recipe.reads
        if isinstance(log, (str, os.PathLike)) and not osp.isdir(log):
            log = LogSchema.load(log)
        if isinstance(log, LogSchema):
            schema = {'columns': log.columns, 'time_unit': log.time_unit, **log.own_format}
            with _folder(root) as folder:
                return RawLog.of(EventLog(folder, log, log=progress), reads), schema
        if isinstance(log, ClickDataset):
            schema = {}
            if isinstance(log, EventLog):
                form = log.arguments.get('format', {})
                schema = {'columns': log.columns, 'time_unit': log.time_unit, **form}
            return RawLog.of(log, reads), schema
        if self.model_name not in STORE_RECIPES:
            raise ValueError(
                f'{self.model_name!r} does not read a store, as {" and ".join(STORE_RECIPES)} do: '
                f'take one of these, or a log that fits in memory.'
            )
        found = StoredLog.of(log, reads)
        return found, found.schema

    def _train(
        self, recipe: Any, log: KnownLog, split: TemporalSplit, directory: Any, progress: bool
    ) -> tuple[Module, dict[str, dict[str, float]]]:
        # Here and in evaluate, so that who only asks for scores does not wait for it.
        from mag.training import ClickTask, evaluate, fit

        source, parts, history = recipe.prepare(log.to_prepare(), split, progress)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = recipe.build(source)
        task = ClickTask(model, **recipe.task)
        rows = recipe.loader(
            parts[0], history, batch_size=self.batch_size, shuffle=True, seed=self.seed
        )
        val, test = (recipe.loader(part, history, batch_size=_BATCH) for part in parts[1:])
        fit(
            task,
            rows,
            val,
            directory=directory,
            max_epochs=self.max_epochs,
            patience=self.patience,
            seed=self.seed,
            monitor=recipe.monitor,
            progress=progress,
        )
        metrics = {'validation': evaluate(task, val), 'test': evaluate(task, test)}
        averaged = task.averaged
        model = model if averaged is None else cast(Module, averaged.module)
        return model.requires_grad_(False).eval(), metrics

    def score(
        self,
        user: Any,
        items: Any,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Tensor:
        r"""The probabilities that a user clicks the items of a request.

        Args:
            user (id or list): The raw id of the user, or one for each item.
            items (list): Raw ids of the candidates, shape :obj:`[B]`.
            time (int, optional): When, in seconds, not before the last event that is known; by
                default the second after it.
            context (dict, optional): By name, each context and feature of the log, one for the
                request or one for each item. A value that is new is unknown. A :obj:`query` is a
                text, or a list for each item of a text or a list of terms; :obj:`None` or an empty
                text is a recommendation. Else :obj:`None`, NaN and an empty text are what they
                are in the log, :obj:`'unknown'`. (default: :obj:`None`)

        Returns:
            float64, shape :obj:`[B]`: what :meth:`predict` tells of a :obj:`"click"`.

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            TypeError: If an id is of a type that cannot be compared with those of the log.
            ValueError: If there is not one user, or one for each item, a context is missing or
                unknown, or the time is before the last event.
        """
        return self.predict(user, items, time, context)['click']

    def predict(
        self,
        user: Any,
        items: Any,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        r"""All probabilities that the model tells, see :func:`mag.logits.probabilities`: those of
        :obj:`"click"`, and of GMCM of :obj:`"conversion"` after a click and of
        :obj:`"click_and_conversion"`.

        Args and errors are those of :meth:`score`.
        """
        with torch.inference_mode():
            return probabilities(self._logits(self._request(user, items, time, context)))

    def batch(
        self,
        user: Any,
        items: Any,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Any:
        r"""What the model reads of a request, such as a :class:`~mag.loader.PairBatch`, for the
        program that :meth:`export` wrote.

        Args and errors are those of :meth:`score`.
        """
        return self._served.batch(self._request(user, items, time, context))

    def _request(
        self, user: Any, items: Any, time: int | None, context: Mapping[str, Any] | None
    ) -> Request:
        log = self._known()
        names = [name for name in self.columns if name not in _NODES]
        given = self._schema.get('columns', {})
        # Whoever tries another model need not change what is told.
        others = {'query', 'domain', *_named(given)}
        separator = given.get('separators', {}).get('query', ' ')
        return read_request(log, names, others, separator, user, items, time, context)

    def update(self, events: Any, progress: bool = False) -> 'Pipeline':
        r"""Reads new events, clicked or not: counts at the target, macro rows, recent neighbors,
        histories, paths, hypergraphs and clusters of who is new are then those of the whole log.
        Weights stay what they are; users, items and names that are new get those of the unknown.
        Of a query, as many terms are read as the longest of the log that was fitted has.

        A user or item that comes later gets its cluster by what it did up to the update, or the
        part of the split, that holds its first click, and keeps it.

        The log is held as tensors, and all but counts and macro rows is made anew: the cost is
        linear in the log.

        Args:
            events (ClickDataset, LogSchema, str or table): A dataset, what one reads, or files or a
                table in memory with the columns of the log that was fitted, none earlier than
                the last event that is known.
            progress (bool, optional): If set to :obj:`True`, progress is shown.
                (default: :obj:`False`)

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            ValueError: If they cannot be read, one is earlier than the last event that is known, or
                the pipeline was fitted on a store. Then nothing has changed.
        """
        return self._take(self._known().extend(self._read(events, progress)))

    def _take(self, log: KnownLog) -> 'Pipeline':
        r"""Knows a log that has grown from the one that was known."""
        known = self._known()
        recipe = self._recipe.keep(log)
        served, model = self._served, self._model
        if not served.update(recipe, log, known.num_events):
            served = recipe.serve(log)
        has_grown = any(len(ids) > len(known.maps[name]) for name, ids in log.maps.items())
        if has_grown or recipe.is_in_model:
            model = copy.deepcopy(model)
            model.grow(served.source)  # type: ignore[operator]
        self._log, self._recipe, self._served, self._model = log, recipe, served, model
        return self

    def evaluate(self, log: Any, progress: bool = False) -> dict[str, float]:
        r"""The metrics of a later export: how well what the pipeline knows now tells its rows.
        Rows up to the last event that is known are left out, as they were learned from.

        Args:
            log (ClickDataset, LogSchema, str or table): As for :meth:`update`.
            progress (bool, optional): If set to :obj:`True`, progress is shown.
                (default: :obj:`False`)

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            ValueError: If the log cannot be read, or has no later row.
        """
        from mag.metrics import click_metrics

        known = self._known()
        later = self._read(log, progress)
        events = known.encode(later)
        rows = (events['time'] >= known.end).nonzero().view(-1)
        if rows.numel() == 0:
            raise ValueError(
                f"'log' must have rows from {known.end} on, which the pipeline has not seen, but "
                f'its last is of {later.end - 1}.'
            )
        outputs: list[tuple[Tensor, ...]] = []
        with torch.inference_mode():
            batches = rows.split(_BATCH)
            # No bar for what takes less than two seconds.
            for batch in tqdm(batches, 'Evaluating', disable=not progress, delay=2.0, leave=False):
                logits = self._logits(request_of(known, events, batch))
                # Who is unknown here is somebody there.
                user, label = later.events['user'][batch], events['label'][batch]
                output: tuple[Tensor, ...] = logits.click, label, user
                if logits.conversion is not None:
                    conversion = events['conversion'][batch]
                    output = (*output, logits.conversion, log_both(logits), conversion)
                outputs.append(output)
        return click_metrics(outputs, torch.device('cpu'))

    @property
    def predicts(self) -> tuple[str, ...]:
        r"""The names of what :meth:`predict` tells."""
        return self._recipe.predicts

    @property
    def columns(self) -> dict[str, str]:
        r"""What a request tells, :obj:`"user"`, :obj:`"item"` and the contexts and features that
        the model reads, and the names of their columns in the log that was fitted."""
        log, given = self._known(), self._schema.get('columns', {})
        # A query tells the domain, unless the log has a column for it.
        left_out = {'query', 'domain'} - set(given) if given else {'domain'}
        names = [name for name in (*log.contexts, *log.features) if name not in left_out]
        named = given | _named(given)
        return {name: named.get(name, name) for name in ('user', 'item', *names)}

    def summary(self) -> dict[str, Any]:
        r"""What the pipeline holds, as values of JSON: model, sizes, metrics, and what was fitted:
        for models of the macro graph, for each grouping how many users or items are in each
        cluster, by name where it is an attribute; the macro edges, the clicks from each cluster of
        users (a row) on each of items; and the ten heaviest."""
        log = self._known()
        return {
            'model': self.model_name,
            **log.summary(),
            'metrics': self.metrics,
            **self._recipe.summary(log),
        }

    def save(self, folder: str | os.PathLike[str], program: bool = False) -> None:
        r"""Writes all that :meth:`load` needs: ids as Parquet, tensors as safetensors, the rest as
        JSON with the checksums of all files. The folder is written under a temporary name and
        renamed; a pipeline that was saved there is replaced.

        Args:
            folder (str): The folder.
            program (bool, optional): If set to :obj:`True`, the program of :meth:`export` is
                written, too, as :obj:`model.pt2`, which takes seconds. It is for others to run:
                :meth:`load` does not read it, as PyTorch's format has a pickle in it.
                (default: :obj:`False`)

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            TypeError: If there can be no :obj:`program`, see :meth:`export`.
            ValueError: If something else is there.
        """
        log = self._known()
        fitted, values = self._recipe.fitted_state()
        with writing(folder) as partial:
            facts = log.save(partial)
            write_safetensors(osp.join(partial, 'fitted.safetensors'), fitted)
            weights = self._model.state_dict()
            write_safetensors(osp.join(partial, 'model.safetensors'), weights)
            if program:
                self.export(osp.join(partial, 'model.pt2'))
            manifest = {
                'model': self.model_name,
                'split': {name: getattr(self.split, name) for name in _OF_SPLIT},
                'batch_size': self.batch_size,
                'max_epochs': self.max_epochs,
                'patience': self.patience,
                'seed': self.seed,
                'arguments': self.arguments,
                'schema': self._schema,
                **facts,
                'fitted': values,
                'metrics': {
                    # JSON has no NaN.
                    part: {name: None if math.isnan(x) else x for name, x in found.items()}
                    for part, found in self.metrics.items()
                },
            }
            write_manifest(partial, manifest)

    @property
    def model(self) -> Module:
        r"""The model that was fitted, in evaluation mode."""
        self._known()
        return self._model

    def snapshot(
        self,
        folder: str | os.PathLike[str],
        log: 'EventStream | None' = None,
        register: 'IdRegister | None' = None,
        at: int | None = None,
        program: bool = False,
        compile: bool = False,
    ) -> str:
        r"""Writes all that :mod:`mag.online` scores by, as of the end of the log, to a folder in
        :obj:`folder` that is named by its content, and returns its path, see
        :class:`~mag.online.Snapshot`. The log of a store is read in pieces; memory is that of the
        rows of all nodes and of the distinct clicks.

        Of a stream, the events after those that the pipeline knows are read first, as by
        :meth:`update`, with users and items that are new. They are taken in the order of the
        stream: one whose time is before that of an earlier one is taken to have happened with it.
        A stream tells no contexts or attributes, so that those are unknown.

        The position of the snapshot is the number of exposures that the pipeline knows: they are
        the first events of the :class:`~mag.online.EventStream` that goes on from there, see
        :meth:`events`.

        Args:
            folder (str): The folder, which is made if there is none.
            log (EventStream, optional): What goes on from the events that the pipeline knows. The
                pipeline knows those before :obj:`at` afterwards. (default: :obj:`None`)
            register (IdRegister, optional): The ids of users and items of the stream that came
                after the first snapshot. (default: :obj:`None`)
            at (int, optional): The position in the stream that the snapshot is as of. By default
                its end.
            program (bool, optional): If set to :obj:`True`, the snapshot holds a
                :class:`~mag.online.Program`, too, so that a server needs no model, which takes
                seconds. (default: :obj:`False`)
            compile (bool, optional): If set to :obj:`True`, it holds a program and its native code
                for processors such as this one, which takes a minute and a compiler of C++.
                (default: :obj:`False`)

        Raises:
            RuntimeError: If the pipeline has not been fitted, it cannot be compiled, or what was
                made does not agree with the model to 1e-6.
            ValueError: If the model is neither :obj:`"count_net"` nor :obj:`"macgnn"`, or the log
                tells queries, domains or features, or is that of a store, which was changed, or
                cannot go on by a stream; the stream has no such position, or other events or ids
                than the pipeline; or one of :obj:`log`, :obj:`register` and :obj:`at` lacks
                another. Then nothing has changed.
        """
        known = self._known()
        if (log is None) != (register is None) or (log is None and at is not None):
            raise ValueError("'log' and 'register' are told together, and 'at' with them.")
        checksum = None
        if log is not None and register is not None:
            # Not after a log was read.
            require_served(self.model_name, known)
            if not isinstance(known, RawLog):
                raise ValueError(
                    f'{log!r} cannot be read by a pipeline of a store: build a store of the longer '
                    f'log, and write a snapshot of that.'
                )
            grown = follow(known, log, register, at)
            # Its own times, which may go back.
            checksum = log.checksum(grown.num_events)
            if grown is not known:
                self._take(grown)

        def make() -> tuple[Program | None, Compiled | None]:
            if not program and not compile:
                return None, None
            batch = self._served.batch(example_of(self._known(), _NUM_EXAMPLES))
            found = Program.export(self._model, batch)
            return found, found.to_native(batch) if compile else None

        return write_snapshot_of(
            folder, self.model_name, self._known(), self._recipe, self._model, make, checksum
        )

    def events(self) -> np.ndarray:
        r"""The exposures that the pipeline knows as the events that :mod:`mag.online` reads, by the
        numbers of users and items, in their order, shape :obj:`[L]`.

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            ValueError: If the log is in a store.
        """
        log = self._known()
        if not isinstance(log, RawLog):
            raise ValueError(
                'A pipeline that was fitted on a store holds no events: read them in pieces, by '
                'event_pieces.'
            )
        return events_of(log)

    def event_pieces(self) -> Iterator[np.ndarray]:
        r"""The :meth:`events` in pieces, of which those of a store are read from its log one after
        the other, so that they need not fit in memory.

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            FileNotFoundError: If a file of the log of a store is missing.
            ValueError: If one is another than the one that the store was built from.
        """
        return pieces_of(self._known())

    def export(self, path: str | os.PathLike[str]) -> None:
        r"""Writes the model as a program of :func:`torch.export.export`, which takes what
        :meth:`batch` makes of a request of any number of items and returns logits. To run, it needs
        PyTorch and the class of its batches, and no model of mag.

        .. code-block:: python

            pipeline.export('shop.pt2')
            program = torch.export.load('shop.pt2').module(check_guards=False)
            program(pipeline.batch('ann', ['tea', 'rice'])).sigmoid()

        Args:
            path (str): The file, which is there once it is whole.

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            TypeError: If the model reads a :class:`~torch_geometric.data.HeteroData`, of which
                :obj:`torch.export` knows nothing.
        """
        log = self._known()
        example = self._served.batch(example_of(log))
        if isinstance(example, HeteroData):
            raise TypeError(
                f'{type(self._model).__name__} reads a HeteroData, which torch.export does not '
                f'take: serve it by Pipeline.load.'
            )
        size = torch.export.Dim('batch', min=2)
        shapes = tree_map(lambda value: {0: size} if isinstance(value, Tensor) else None, example)
        with warnings.catch_warnings():
            # It is loaded with the shapes that it was written for.
            warnings.filterwarnings('ignore', category=UserWarning)
            program = torch.export.export(self._model, (example,), dynamic_shapes=(shapes,))
        # Rows of the log are nobody's business.
        program.example_inputs = None
        with replacing(path) as temporary:
            torch.export.save(program, temporary)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> 'Pipeline':
        r"""Reads what :meth:`save` wrote, here or on another machine. The raw files are not needed,
        nothing that a file holds is run, and all scores are what they were, to the last bit. A
        store stays where it is, at the same path, or at the same one from the folder.

        Args:
            folder (str): The folder.

        Raises:
            FileNotFoundError: If there is no folder.
            ValueError: If it is no saved pipeline, is of another version, a file is missing, cut
                or damaged, or the store is gone or another one.
        """
        return read_whole(folder, cls._load)

    @classmethod
    def _load(cls, folder: str, manifest: dict[str, Any]) -> 'Pipeline':
        pipeline = cls(
            manifest['model'],
            TemporalSplit(**manifest['split']),
            **{name: manifest[name] for name in ('batch_size', 'max_epochs', 'patience', 'seed')},
            **manifest['arguments'],
        )
        log: KnownLog
        if 'store' in manifest:
            log = StoredLog.load(folder, manifest, pipeline._recipe.reads)
            # It was that of the store, and another one may have another.
            pipeline._given_split = None
        else:
            log = RawLog.load(folder, manifest)
        pipeline._log = log
        pipeline._schema = manifest['schema']
        pipeline.metrics = {
            part: {name: math.nan if x is None else x for name, x in found.items()}
            for part, found in manifest['metrics'].items()
        }
        recipe = _recipes(log)[pipeline.model_name](pipeline.seed, **pipeline.arguments)
        fitted = read_safetensors(osp.join(folder, 'fitted.safetensors'))
        recipe.load_fitted_state(fitted, manifest['fitted'])
        pipeline._recipe, pipeline._served = recipe, recipe.serve(log)
        with torch.random.fork_rng(devices=[]):
            model = recipe.build(pipeline._served.source)
        model.load_state_dict(read_safetensors(osp.join(folder, 'model.safetensors')))
        pipeline._model = model.requires_grad_(False).eval()
        return pipeline

    def _known(self) -> KnownLog:
        if self._log is None:
            raise RuntimeError('Pipeline has not been fitted: call fit, or Pipeline.load.')
        return self._log

    def _read(self, log: Any, progress: bool) -> RawLog:
        r"""A log of its own, of files or a table with the columns that were fitted."""
        if isinstance(log, ClickDataset):
            return RawLog.of(log, self._recipe.reads)
        if not isinstance(log, LogSchema):
            if not self._schema:
                raise ValueError(
                    'Pipeline was fitted on a dataset without columns: pass a dataset of its kind.'
                )
            log = LogSchema(log, **self._schema)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # Nothing is learned from them: events may as well be clicks alone.
            warnings.filterwarnings('ignore', 'Each of the .* rows is a click')
            # What is not told of a node stays.
            warnings.filterwarnings('ignore', '.* have no row in .*: what it tells is')
            # A table of items may tell of one that is known and has no event now.
            maps = self._known().maps if log.side_tables else {}
            ids = {node: maps[node] for node in _NODES} if maps else None
            return RawLog.of(EventLog(folder, log, log=progress, ids=ids), self._recipe.reads)

    def _logits(self, request: Request) -> Logits:
        return as_logits(type(self._model).__name__, self._model(self._served.batch(request)))


def _recipes(log: KnownLog) -> dict[str, type[Recipe]]:
    r"""The recipes of a log."""
    return STORE_RECIPES if isinstance(log, StoredLog) else RECIPES


_OF_SPLIT = ('train_start', 'val_start', 'test_start', 'num_windows', 'by', 'keep_cold')


def _named(columns: Mapping[str, Any]) -> dict[str, str]:
    r"""The columns of contexts and features of a log, by their names."""
    named: dict[str, str] = {}
    for role in ('contexts', 'features'):
        found = columns.get(role, ())
        named |= found if isinstance(found, Mapping) else {name: name for name in found}
    return named


def _folder(root: Any) -> Any:
    if root is None:
        return tempfile.TemporaryDirectory()
    return nullcontext(root)
