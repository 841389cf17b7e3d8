import os.path as osp

import duckdb

from mag.datasets._delimited import create_table, scan_csv
from mag.datasets._named_release import NamedRelease, Release
from mag.datasets._sql import FLAG
from mag.datasets._values import checked_flag, create_attributes
from mag.datasets.log_table import LogTable

_BEHAVIORS = ('is_profile_enter', 'is_like', 'is_comment', 'is_follow', 'is_forward')
_CONVERSION = 'long_view'

_USER_FEATURES = (
    'user_active_degree',
    'is_lowactive_period',
    'is_live_streamer',
    'is_video_author',
    'follow_user_num_range',
    'fans_user_num_range',
    'friend_user_num_range',
    'register_days_range',
    *(f'onehot_feat{i}' for i in range(18)),
)

_VIDEO_FEATURES = ('author_id', 'video_type', 'upload_type', 'music_type')


class KuaiRand(NamedRelease):
    r"""The click logs of the short-video application Kuaishou from the
    `"KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly
    Exposed Videos" <https://arxiv.org/abs/2208.08696>`_ paper.

    Every row of the standard logs is an exposure, :obj:`is_click` its label;
    the log of randomly exposed videos is left out.
    Nodes are the users and videos of the logs that are present, in ascending
    order of their ids; users and videos that only the feature files name have
    no exposure and are no nodes.

    Rows with the same user, video and millisecond are one exposure that was
    logged again (they agree in their label, and differ at most in the time of
    logging), so they are merged: the exposure was clicked, liked, ... if any
    of its rows says so.
    :attr:`num_duplicates` counts the rows that went.

    The :class:`~torch_geometric.data.HeteroData` holds

    * :obj:`data['user']`: the categoricals :obj:`user_active_degree`,
      :obj:`is_lowactive_period`, :obj:`is_live_streamer`,
      :obj:`is_video_author`, :obj:`follow_user_num_range`,
      :obj:`fans_user_num_range`, :obj:`friend_user_num_range`,
      :obj:`register_days_range` and :obj:`onehot_feat0` to
      :obj:`onehot_feat17`;
    * :obj:`data['item']`: :obj:`category`, the first tag of the video, and
      :obj:`author_id`, :obj:`video_type`, :obj:`upload_type`,
      :obj:`music_type`;
    * :obj:`data['user', 'clicks', 'item']`: :obj:`edge_index` and
      :obj:`time` of the clicks; :obj:`edge_label_index`, :obj:`edge_label`
      and :obj:`edge_label_time` of the exposures, times in seconds (rows
      are ordered by millisecond); :obj:`edge_label_behavior`, shape
      :obj:`[num_exposures, 5]`, what followed the click, in the order of
      :obj:`names['behavior']`; :obj:`edge_label_conversion`, shape
      :obj:`[num_exposures]`, whether the click led to a long view.

    The logs hold a few long views, likes, ... of exposures that were not
    clicked: of the 70,963 long views in the second log of :obj:`'pure'`, 250.
    Here they are 0, as conversions and behaviors are what followed a click;
    only so is the probability of a conversion that of a click times that of
    a conversion after a click.

    The meaning of each code is in :attr:`names`; a missing value has the name
    :obj:`'unknown'`.

    .. note::
        The data is not downloaded. Get :obj:`KuaiRand-Pure.tar.gz` from
        `kuairand.com <https://kuairand.com>`_ and unpack it into
        :obj:`root/raw`. Whichever of the standard logs are there are read.

    Args:
        root (str): The files are looked for in :obj:`root/raw`,
            :obj:`root/raw/data` and :obj:`root/raw/KuaiRand-Pure/data`.
        name (str, optional): :obj:`'pure'` or :obj:`'1k'`.
            (default: :obj:`'pure'`)
        transform (callable, optional): Applied to the data on every access.
        pre_transform (callable, optional): Applied once, before caching; no
            bare function, as its :obj:`repr` is what the cache is known by.
        force_reload (bool, optional): Whether to process the raw files again.
            (default: :obj:`False`)
        log (bool, optional): Whether to show progress.
            (default: :obj:`True`)

    Raises:
        FileNotFoundError: If a file is missing; it says which.
        ValueError: If :obj:`name` is unknown, if a file lacks a column, holds
            a row that cannot be read or repeats the features of a user or
            video, or if the cache was made with other arguments, by another
            version or from other raw files.
    """

    schema_version = 3
    url = 'https://kuairand.com'
    releases = {
        name: Release(
            f'{folder}.tar.gz',
            osp.join(folder, 'data'),
            (
                f'log_standard_*_{name}.csv',
                f'video_features_basic_{name}.csv',
                f'user_features_{name}.csv',
            ),
        )
        for name, folder in (('pure', 'KuaiRand-Pure'), ('1k', 'KuaiRand-1K'))
    }

    @property
    def folders(self) -> list[str]:
        raw, release = super().folders
        return [raw, osp.join(raw, 'data'), release]

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        *logs, videos, users = self.source_files
        ids = {'user_id': 'BIGINT', 'video_id': 'BIGINT', 'time_ms': 'BIGINT'}
        flags = (*_BEHAVIORS, _CONVERSION)
        log_columns = ids | dict.fromkeys(('is_click', *flags), FLAG)
        for path in logs:
            label, *checked = (checked_flag(name, path, *ids) for name in ('is_click', *flags))
            scan = scan_csv(path, log_columns, tuple(log_columns))
            select = f"""
                SELECT user_id AS user, video_id AS item, time_ms AS time, {label} AS label,
                       {', '.join(map('{} AS {}'.format, checked, flags))}
                FROM {scan}
            """
            create_table(connection, 'log', select, scan, append=path != logs[0])

        user_columns = {'user_id': 'BIGINT'} | dict.fromkeys(_USER_FEATURES, 'VARCHAR')
        scan = scan_csv(users, user_columns, ('user_id',))
        select = f'SELECT user_id AS id, {", ".join(_USER_FEATURES)} FROM {scan}'
        create_attributes(connection, 'user', select, scan)
        video_columns = {'video_id': 'BIGINT'} | dict.fromkeys((*_VIDEO_FEATURES, 'tag'), 'VARCHAR')
        scan = scan_csv(videos, video_columns, ('video_id',))
        select = f"""
            SELECT video_id AS id, string_split(tag, ',')[1] AS category,
                   {', '.join(_VIDEO_FEATURES)}
            FROM {scan}
        """
        create_attributes(connection, 'item', select, scan)
        return LogTable(
            time_unit='ms',
            merge_duplicates=True,
            behaviors=_BEHAVIORS,
            conversion=_CONVERSION,
        )
