import copy
import json
import math
import os
import os.path as osp
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.checks import check_choice, check_integers
from mag.datasets import ClickDataset, EventLog, IdMap, LogSchema
from mag.logits import as_logits, probabilities
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes import RECIPES
from mag.pipeline.saved import (
    read_safetensors,
    read_whole,
    write_manifest,
    write_safetensors,
    writing,
)
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

_BATCH = 8192
_NODES = ('user', 'item')


class Pipeline:
    r"""What stands between a raw log and a score: the meaning of its columns, its ids, the fitted
    transforms, the macro graph as of now, and the model.

    .. code-block:: python

        pipeline = Pipeline('count_net').fit(LogSchema.load('shop.yaml'))
        pipeline.save('shop/')

        pipeline = Pipeline.load('shop/')                       # another process, without the log
        pipeline.score('ann', ['tea', 'rice'], context={'device': 'phone'})
        pipeline.update('exports/today.csv')
        pipeline.evaluate('exports/tomorrow.csv')

    Users, items and contexts are told by their raw ids and names. One that is unknown has a score,
    too: that of somebody, or something, of which nothing is known.

    A log may have users, items, times, labels, attributes of users and items, and contexts; other
    roles that these models could not read anyway, such as a conversion, are left out, and a log
    with a query, a domain, or times at which clicks and labels are known is refused.

    Clusters are learned from the first training history; a user or item that comes later gets a
    cluster with the part of the split, or the :meth:`update`, that holds its first click, and
    stays there.

    Args:
        model (str): :obj:`"count_net"` for :class:`~mag.models.CountNet`, or :obj:`"macgnn"` for
            :class:`~mag.models.MacGNN`.
        groups (dict, optional): How users and items are grouped, see
            :class:`~mag.transforms.MacroCoarsen`. By default users in 20 clusters, and items by
            their :obj:`category`; for CountNet also in 50 clusters.
        split (TemporalSplit, optional): What is trained on, and what training stops and is tested
            on. (default: :obj:`TemporalSplit()`)
        batch_size (int, optional): Rows of a step of training. (default: :obj:`1024`)
        max_epochs (int, optional): At most this many passes over the training rows.
            (default: :obj:`20`)
        patience (int, optional): Stop after this many validations without a better value.
            (default: :obj:`5`)
        seed (int, optional): Seed of clusters, weights, dropout and the order of rows.
            (default: :obj:`0`)
        **arguments (optional): Arguments of the model, as values of JSON.

    Attributes:
        metrics (dict[str, dict[str, float]]): Those of :obj:`"validation"` and :obj:`"test"`, as
            of :meth:`fit`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range, or users are split by their own logs, where a
            cutoff is no moment that a request comes after.
    """

    def __init__(
        self,
        model: str,
        groups: Mapping[str, Any] | None = None,
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
        for name, value in (('groups', groups), *arguments.items()):
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"'{name}' must be a value that JSON has, as it is saved, but got {value!r}."
                ) from error
        self.model_name = model
        self.groups = dict(RECIPES[model].groups if groups is None else groups)
        self.split = TemporalSplit() if split is None else split
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.seed = seed
        self.arguments = arguments
        self.metrics: dict[str, dict[str, float]] = {}
        self._recipe = RECIPES[model]
        self._counts = TargetCounts() if self._recipe.counts else None
        self._coarsen = MacroCoarsen(self.groups, seed=seed, **self._recipe.coarsen)
        self._log: RawLog | None = None

    def fit(
        self,
        log: ClickDataset | LogSchema | str | os.PathLike[str],
        root: str | os.PathLike[str] | None = None,
        directory: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> 'Pipeline':
        r"""Splits a log by time, fits the transforms on its training part, trains the model until
        validation no longer improves, and reads all of the log as history.

        Args:
            log (ClickDataset, LogSchema or str): A dataset such as
                :class:`~mag.datasets.EventLog`, what one reads, or the YAML or JSON file that says
                it.
            root (str, optional): Where the cache of the log goes, if it is no dataset. Without one
                it is read, and nothing is left. (default: :obj:`None`)
            directory (str, optional): Where checkpoints and learning curves go, see
                :func:`mag.training.fit`. (default: :obj:`None`)
            progress (bool, optional): If set to :obj:`False`, no progress is shown.
                (default: :obj:`True`)

        Raises:
            TypeError: If :obj:`log` is something else.
            ValueError: If the log cannot be read, split or learned from.
        """
        if isinstance(log, (str, os.PathLike)):
            log = LogSchema.load(log)
        if isinstance(log, LogSchema):
            # What a schema says besides where its tables are.
            self._schema = {
                'columns': log.columns, 'time_unit': log.time_unit, **log.own_format
            }  # fmt: skip
            with _folder(root) as folder:
                known = RawLog.of(EventLog(folder, log, log=progress))
        elif isinstance(log, ClickDataset):
            self._schema = {}
            if isinstance(log, EventLog):
                form = log.arguments.get('format', {})
                self._schema = {'columns': log.columns, 'time_unit': log.time_unit, **form}
            known = RawLog.of(log)
        else:
            raise TypeError(
                f"'log' must be a dataset, a LogSchema or the path of one, but got "
                f'{type(log).__name__}.'
            )
        self._train(known, directory, progress)
        self._log = known
        self._serve()
        return self

    def _train(self, log: RawLog, directory: Any, progress: bool) -> None:
        # Here and in evaluate, so that who only asks for scores does not wait for it.
        from mag.training import ClickTask, evaluate, fit

        recipe, data = self._recipe, log.graph()
        parts = []
        coarsen = MacroCoarsen(self.groups, seed=self.seed, **recipe.coarsen)
        for place, part in enumerate(self.split(data)):
            if place == 0:
                coarsen.fit(part)
            parts.append(coarsen(self._with_recent(part)))
            coarsen = coarsen.keep(part)
        if recipe.counts:
            self._counts = TargetCounts().fit(parts[0])
            counts = self._counts
            # Training rows read what came before themselves; the others, what did before a cutoff.
            parts = [counts(parts[0], log=data), *map(counts, parts[1:])]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = recipe.build(parts[0], **self.arguments)
        task = ClickTask(model, **recipe.task)
        rows = recipe.loader(parts[0], self.batch_size, shuffle=True, seed=self.seed)
        val, test = (recipe.loader(part, _BATCH) for part in parts[1:])
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
        self.metrics = {'validation': evaluate(task, val), 'test': evaluate(task, test)}
        averaged = task.averaged
        self._model = model if averaged is None else cast(Module, averaged.module)
        self._model.requires_grad_(False).eval()
        self._coarsen = coarsen.keep(log.part())

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
            context (dict, optional): By name, each context of the log, one for the request or one
                for each item. A value that is new is unknown. (default: :obj:`None`)

        Returns:
            float64 as those of :func:`mag.training.predict`, shape :obj:`[B]`.

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            TypeError: If an id is of a type that cannot be compared with those of the log.
            ValueError: If there is not one user, or one for each item, a context is missing or
                unknown, or the time is before the last event.
        """
        log = self._known()
        item = log.look_up('item', items)
        if item.dim() != 1:
            raise ValueError(
                f"'items' must be a list of ids, shape [B], but got shape {list(item.shape)}."
            )
        number = item.numel()
        who = _for_each('user', log.look_up('user', _as_list(user)), number)
        time = log.end if time is None else time
        check_integers(log.end - 1, time=time)
        given = dict(context or {})
        names = log.contexts if self._recipe.contexts else []
        if not set(names) <= set(given) <= set(log.contexts):
            raise ValueError(
                f"'context' must tell {names or 'nothing'}, but told {sorted(given) or 'nothing'}."
            )
        contexts = {
            name: _for_each(name, log.look_up(name, _as_list(given[name])), number)
            for name in names
        }
        with torch.inference_mode():
            when = torch.full((number,), int(time))
            return probabilities(self._logits(who, item, when, contexts))['click']

    def update(self, events: Any, progress: bool = False) -> 'Pipeline':
        r"""Reads new events, clicked or not: counts at the target, macro rows, recent neighbors and
        clusters of who is new are then those of the whole log. Weights stay what they are; users,
        items and names that are new get those of the unknown.

        The log is held as tensors, and macro rows are counted anew: the cost is linear in the log.

        Args:
            events (ClickDataset, LogSchema, str or table): A dataset, what one reads, or files or a
                table in memory with the columns of the log that was fitted, none earlier than
                the last event that is known.
            progress (bool, optional): If set to :obj:`True`, progress is shown.
                (default: :obj:`False`)

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            ValueError: If they cannot be read, or one is earlier than the last event that is known.
                Then nothing has changed.
        """
        known = self._known()
        new = self._read(events, progress)
        log = known.extend(new)
        part = log.part()
        coarsen = self._coarsen.keep(part)
        model = self._model
        if any(len(log.maps[name]) > len(ids) for name, ids in known.maps.items()):
            model = copy.deepcopy(model)
            model.grow(self._transformed(part, coarsen))  # type: ignore[operator]
        state = self._state
        is_same = (
            model is self._model
            and _equal(coarsen.cluster, self._coarsen.cluster)
            and all(_equal(log.attributes[node], known.attributes[node]) for node in _NODES)
        )
        self._log, self._coarsen, self._model = log, coarsen, model
        if state is None or not is_same:
            self._serve()
            return self
        # Nobody is new: each event moves the counts that it is of.
        first = known.events['time'].numel()
        last = {name: value[first:] for name, value in log.events.items()}
        state.update(last['user'], last['item'], last['time'], last['label'], last)
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
        codes = known.encode(later)
        rows = (codes['time'] >= known.end).nonzero().view(-1)
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
                contexts = {name: codes[name][batch] for name in known.contexts}
                user, item, time = (codes[name][batch] for name in ('user', 'item', 'time'))
                logits = self._logits(user, item, time, contexts)
                # Who is unknown here is somebody there.
                outputs.append((logits.click, codes['label'][batch], later.events['user'][batch]))
        return click_metrics(outputs, torch.device('cpu'))

    @property
    def columns(self) -> dict[str, str]:
        r"""What a request tells, :obj:`"user"`, :obj:`"item"` and the contexts that the model
        reads, and the names of their columns in the log that was fitted."""
        log, given = self._known(), self._schema.get('columns', {})
        contexts = given.get('contexts', ())
        named = dict(contexts) if isinstance(contexts, Mapping) else {x: x for x in contexts}
        names = ['user', 'item', *(log.contexts if self._recipe.contexts else ())]
        return {name: given.get(name, named.get(name, name)) for name in names}

    def summary(self) -> dict[str, Any]:
        r"""What the pipeline holds, as values of JSON: model, sizes, metrics; for each grouping how
        many users or items are in each cluster, by name where it is an attribute; the macro edges,
        the clicks from each cluster of users (a row) on each of items; and the ten heaviest."""
        log, cluster = self._known(), self._coarsen.cluster
        edge_index, time = log.clicks()
        groupings = {}
        for of in self._coarsen.resolutions:
            found = cluster[of.name]
            sizes = found[found >= 0].bincount().tolist()
            names = log.raw(of.group) if isinstance(of.group, str) else range(len(sizes))
            groupings[of.name] = {str(name): size for name, size in zip(names, sizes)}
        user, item = cluster['user'][edge_index[0]], cluster['item'][edge_index[1]]
        is_in = (user >= 0) & (item >= 0)
        pairs, clicks = torch.stack([user, item])[:, is_in].unique(dim=1, return_counts=True)
        heaviest = clicks.argsort(descending=True, stable=True)[:10]
        keys = [list(groupings[node]) for node in _NODES]
        edges = clicks.new_zeros(*map(len, keys)).index_put_(tuple(pairs), clicks)
        return {
            'model': self.model_name,
            'users': len(log.maps['user']),
            'items': len(log.maps['item']),
            'exposures': log.events['time'].numel(),
            'clicks': time.numel(),
            'first time': int(log.events['time'][0]),
            'last time': log.end - 1,
            'ids': {name: ids.fingerprint for name, ids in log.maps.items()},
            'metrics': self.metrics,
            'clusters': groupings,
            'macro edges': edges.tolist(),
            'heaviest macro edges': [
                {'user': keys[0][u], 'item': keys[1][i], 'clicks': number}
                for (u, i), number in zip(
                    pairs[:, heaviest].t().tolist(), clicks[heaviest].tolist()
                )
            ],
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        r"""Writes all that :meth:`load` needs: ids as Parquet, tensors as safetensors, the rest as
        JSON with the checksums of all files. The folder is written under a temporary name and
        renamed; a pipeline that was saved there is replaced.

        Args:
            folder (str): The folder.

        Raises:
            RuntimeError: If the pipeline has not been fitted.
            ValueError: If something else is there.
        """
        log = self._known()
        fitted, values = self._coarsen.fitted_state()
        tensors = {f'event/{name}': value for name, value in log.events.items()}
        tensors |= {
            f'{node}/{name}': value
            for node in _NODES
            for name, value in log.attributes[node].items()
        }
        with writing(folder) as partial:
            for name, ids in log.maps.items():
                ids.save(osp.join(partial, f'ids_{name}.parquet'))
            write_safetensors(osp.join(partial, 'log.safetensors'), tensors)
            write_safetensors(osp.join(partial, 'clusters.safetensors'), fitted)
            weights = self._model.state_dict()
            write_safetensors(osp.join(partial, 'model.safetensors'), weights)
            manifest = {
                'model': self.model_name,
                'groups': self.groups,
                'split': {name: getattr(self.split, name) for name in _OF_SPLIT},
                'batch_size': self.batch_size,
                'max_epochs': self.max_epochs,
                'patience': self.patience,
                'seed': self.seed,
                'arguments': self.arguments,
                'schema': self._schema,
                'ids': {name: ids.fingerprint for name, ids in log.maps.items()},
                'contexts': log.contexts,
                'attributes': {node: list(log.attributes[node]) for node in _NODES},
                'clusters': values,
                'counts': None if self._counts is None else self._counts.fitted_state(),
                'metrics': {
                    # JSON has no NaN.
                    part: {name: None if math.isnan(x) else x for name, x in found.items()}
                    for part, found in self.metrics.items()
                },
            }
            write_manifest(partial, manifest)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> 'Pipeline':
        r"""Reads what :meth:`save` wrote, here or on another machine. The raw files are not needed,
        nothing that a file holds is run, and all scores are what they were, to the last bit.

        Args:
            folder (str): The folder.

        Raises:
            FileNotFoundError: If there is no folder.
            ValueError: If it is no saved pipeline, is of another version, or a file is missing, cut
                or damaged.
        """
        return read_whole(folder, cls._load)

    @classmethod
    def _load(cls, folder: str, manifest: dict[str, Any]) -> 'Pipeline':
        maps = {
            name: IdMap.load(osp.join(folder, f'ids_{name}.parquet')) for name in manifest['ids']
        }
        for name, fingerprint in manifest['ids'].items():
            if maps[name].fingerprint != fingerprint:
                raise ValueError(
                    f'{folder!r} was saved with the ids {fingerprint} of {name!r}, but holds '
                    f'{maps[name].fingerprint}.'
                )
        names = ('batch_size', 'max_epochs', 'patience', 'seed')
        pipeline = cls(
            manifest['model'],
            manifest['groups'],
            TemporalSplit(**manifest['split']),
            **{name: manifest[name] for name in names},
            **manifest['arguments'],
        )
        tensors = read_safetensors(osp.join(folder, 'log.safetensors'))
        events = ('user', 'item', 'time', 'label', *manifest['contexts'])
        pipeline._log = log = RawLog(
            maps,
            {
                node: {name: tensors[f'{node}/{name}'] for name in found}
                for node, found in manifest['attributes'].items()
            },
            {name: tensors[f'event/{name}'] for name in events},
        )
        pipeline._schema = manifest['schema']
        pipeline.metrics = {
            part: {name: math.nan if x is None else x for name, x in found.items()}
            for part, found in manifest['metrics'].items()
        }
        clusters = read_safetensors(osp.join(folder, 'clusters.safetensors'))
        pipeline._coarsen.load_fitted_state(clusters, manifest['clusters'])
        if pipeline._counts is not None:
            pipeline._counts.load_fitted_state(manifest['counts'])
        part = pipeline._transformed(log.part(), pipeline._coarsen)
        with torch.random.fork_rng(devices=[]):
            model = pipeline._recipe.build(part, **pipeline.arguments)
        model.load_state_dict(read_safetensors(osp.join(folder, 'model.safetensors')))
        pipeline._model = model.requires_grad_(False).eval()
        pipeline._serve()
        return pipeline

    def _known(self) -> RawLog:
        if self._log is None:
            raise RuntimeError('Pipeline has not been fitted: call fit, or Pipeline.load.')
        return self._log

    def _read(self, log: Any, progress: bool) -> RawLog:
        r"""A log of its own, of files or a table with the columns that were fitted."""
        if isinstance(log, ClickDataset):
            return RawLog.of(log)
        if not isinstance(log, LogSchema):
            if not self._schema:
                raise ValueError(
                    'Pipeline was fitted on a dataset without columns: pass a dataset of its kind.'
                )
            log = LogSchema(log, **self._schema)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # Nothing is learned from them: events may as well be clicks alone.
            warnings.filterwarnings('ignore', 'Each of the .* rows is a click')
            return RawLog.of(EventLog(folder, log, log=progress))

    def _with_recent(self, part: HeteroData) -> HeteroData:
        return RecentNeighbors(self._recipe.recent)(part) if self._recipe.recent else part

    def _transformed(self, part: HeteroData, coarsen: MacroCoarsen) -> HeteroData:
        part = coarsen(self._with_recent(part))
        return part if self._counts is None else self._counts(part)

    def _serve(self) -> None:
        r"""Makes what requests read, from the log and what was fitted."""
        part = self._transformed(self._known().part(), self._coarsen)
        self._loader = self._recipe.loader(part)
        self._state = None if self._counts is None else self._counts.state(part)

    def _logits(
        self, user: Tensor, item: Tensor, time: Tensor, contexts: Mapping[str, Tensor]
    ) -> Any:
        given: dict[str, Any] = dict(contexts) if self._recipe.contexts else {}
        if self._state is not None:
            given['counts'] = self._state(user, item, time, contexts)
        batch = self._loader.request(user, item, **given)
        return as_logits(type(self._model).__name__, self._model(batch))


_OF_SPLIT = ('train_start', 'val_start', 'test_start', 'num_windows', 'by', 'keep_cold')


def _folder(root: Any) -> Any:
    if root is None:
        return tempfile.TemporaryDirectory()
    return nullcontext(root)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def _as_list(value: Any) -> Any:
    r"""One id as a list of one."""
    is_one = isinstance(value, (str, bytes)) or np.ndim(value) == 0
    return [value] if is_one else value


def _for_each(name: str, value: Tensor, number: int) -> Tensor:
    r"""What is told once, or for each item, for each item."""
    if tuple(value.shape) not in {(1,), (number,)}:
        raise ValueError(
            f"A request of {number} items takes one '{name}', or one for each item, but got shape "
            f'{list(value.shape)}.'
        )
    return value.expand(number)
