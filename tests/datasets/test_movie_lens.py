import hashlib
import io
import operator
import os
import subprocess
import sys
import tarfile
import zipfile
from urllib.error import URLError

import pytest
import torch

from mag.datasets import ClickDataset, MovieLens, _download, movie_lens
from mag.loader import ExposureFeatures
from mag.schema import tokens
from mag.transforms import FieldText

CLICKS = ('user', 'clicks', 'item')
GENRES = [
    'unknown',
    'Action',
    'Adventure',
    'Animation',
    "Children's",
    'Comedy',
    'Crime',
    'Documentary',
    'Drama',
    'Fantasy',
    'Film-Noir',
    'Horror',
    'Musical',
    'Mystery',
    'Romance',
    'Sci-Fi',
    'Thriller',
    'War',
    'Western',
]

# user, item, rating, time; item 5 and user 4 have no rating.
RATINGS = [(2, 1, 5, 300), (1, 3, 3, 100), (1, 1, 4, 200), (3, 2, 1, 200), (2, 6, 4, 50)]
MOVIES = {
    1: ('Tin Dog (1995)', ['Animation', 'Comedy']),
    2: ('Été (Summer) (1994)', ['Drama']),
    3: ('unknown', ['unknown']),
    5: ('Nobody Came (1990)', ['Horror']),
    6: ('Long Road III (1995) (V)', ['Adventure', 'Drama', 'War']),
}
TEXTS = [
    'Tin Dog (1995). Animation, Comedy',
    'Été (Summer) (1994). Drama',
    'unknown',
    'Long Road III (1995) (V). Adventure, Drama, War',
]
ZIPS = {1: '02139', 2: 'T8H1N', 3: '55105', 4: '94043'}
USERS = {1: (24, 'M', 'writer'), 2: (17, 'F', 'other'), 3: (56, 'F', 'writer'), 4: (30, 'M', 'x')}


def write(path, text, encoding='utf-8'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)


def lines(rows, separator):
    return ''.join(separator.join(map(str, row)) + '\n' for row in rows)


def write_100k(folder):
    write(folder / 'u.data', lines(RATINGS, '\t'))
    items = [
        (
            item,
            title,
            '01-Jan-1995',
            '',
            'http://example.org/?a,b',
            *(int(genre in genres) for genre in GENRES),
        )
        for item, (title, genres) in MOVIES.items()
    ]
    write(folder / 'u.item', lines(items, '|'), 'latin-1')
    users = [(user, *values, ZIPS[user]) for user, values in USERS.items()]
    write(folder / 'u.user', lines(users, '|'))


def write_recbole(folder):
    header = [('user_id:token', 'item_id:token', 'rating:float', 'timestamp:float')]
    write(folder / 'ml-100k.inter', lines(header + RATINGS, '\t'))
    rows = [('item_id:token', 'movie_title:token_seq', 'release_year:token', 'class:token_seq')]
    for item, (title, genres) in MOVIES.items():
        name, _, year = title.rpartition(' (')
        name, year = (name, year.rstrip(')')) if name else ('unkonwn', 'unkonwn')
        rows.append((item, name, year, ' '.join(genres)))
    write(folder / 'ml-100k.item', lines(rows, '\t'))
    rows = [('user_id:token', 'age:token', 'gender:token', 'occupation:token', 'zip_code:token')]
    rows += [(user, *values, ZIPS[user]) for user, values in USERS.items()]
    write(folder / 'ml-100k.user', lines(rows, '\t'))


def write_dat(folder, encoding='latin-1', users=True):
    write(folder / 'ratings.dat', lines(RATINGS, '::'))
    movies = [(item, title, '|'.join(genres)) for item, (title, genres) in MOVIES.items()]
    write(folder / 'movies.dat', lines(movies, '::'), encoding)
    if users:
        ages = {24: 18, 17: 1, 56: 56, 30: 25}
        codes = {'writer': 20, 'other': 0, 'x': 5}
        rows = [
            (user, gender, ages[age], codes[occupation], ZIPS[user])
            for user, (age, gender, occupation) in USERS.items()
        ]
        write(folder / 'users.dat', lines(rows, '::'))


def write_csv(folder):
    write(folder / 'ratings.csv', 'userId,movieId,rating,timestamp\n' + lines(RATINGS, ','))
    movies = [
        (item, f'"{title}"', '|'.join(genres).replace('unknown', '(no genres listed)'))
        for item, (title, genres) in MOVIES.items()
    ]
    write(folder / 'movies.csv', 'movieId,title,genres\n' + lines(movies, ','))


LAYOUTS = [
    ('100k', 'ml-100k', write_100k),
    ('100k', 'ml-100k', write_recbole),
    ('1m', 'ml-1m', write_dat),
    ('10m', 'ml-10M100K', lambda folder: write_dat(folder, 'utf-8', users=False)),
    ('25m', 'ml-25m', write_csv),
    ('latest-small', 'ml-latest-small', write_csv),
]


def no_network(*args, **kwargs):
    raise URLError('no network')


@pytest.fixture(autouse=True)
def offline(request, monkeypatch):
    if 'network' not in request.fixturenames:
        monkeypatch.setattr(_download, 'urlopen', no_network)


@pytest.fixture
def network():
    r"""Leaves the network open."""


@pytest.mark.parametrize('nested', [False, True])
@pytest.mark.parametrize('name, folder, write_files', LAYOUTS)
def test_golden_rows(tmp_path, name, folder, write_files, nested):
    write_files(tmp_path / 'raw' / (folder if nested else ''))
    dataset = MovieLens(tmp_path, name, log=False)
    data = dataset[0]
    assert data.validate()
    assert dataset.raw_ids['user'].tolist() == [1, 2, 3]
    assert dataset.raw_ids['item'].tolist() == [1, 2, 3, 6]
    assert dataset.titles.tolist() == [MOVIES[item][0] for item in (1, 2, 3, 6)]
    assert dataset.texts == TEXTS
    assert dataset.num_duplicates == 0

    store = data[CLICKS]
    assert store.edge_label_index.tolist() == [[1, 0, 0, 2, 1], [3, 2, 0, 1, 0]]
    assert store.edge_label_time.tolist() == [50, 100, 200, 200, 300]
    assert store.edge_label.tolist() == [1, 0, 1, 0, 1]
    assert store.edge_index.tolist() == [[1, 0, 1], [3, 0, 0]]
    assert store.time.tolist() == [50, 200, 300]

    names = dataset.names
    assert names['category'] == ['Adventure', 'Animation', 'Comedy', 'Drama', 'War', 'unknown']
    assert data['item'].category.tolist() == [1, 3, 5, 0]
    assert data['item'].num_category == 6
    assert data['item'].x_genre.tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1],
        [1, 0, 0, 1, 1, 0],
    ]
    assert names['year'] == ['unknown', '1994', '1995']
    assert data['item'].year.tolist() == [2, 1, 0, 2]
    if name in ('100k', '1m'):
        assert names['gender'] == ['F', 'M']
        assert data['user'].gender.tolist() == [1, 0, 0]
        assert names['age'] == ['under 18', '18-24', '56+']
        assert data['user'].age.tolist() == [1, 0, 2]
        assert names['occupation'] == ['other', 'writer']
        assert data['user'].occupation.tolist() == [1, 0, 1]
        assert dataset.describe('user')['zip'].tolist() == ['02139', 'T8H1N', '55105']
        assert 'zip' not in data['user']
    else:
        assert dataset.describe('user').keys() == {'id'}
        assert 'gender' not in data['user']


def test_eight_fields_as_text(tmp_path):
    write_dat(tmp_path / '1m' / 'raw')
    write_csv(tmp_path / '25m' / 'raw')
    dataset = MovieLens(tmp_path / '1m', '1m', log=False)
    text = FieldText(**dataset.field_text()).fit(dataset[0])
    out = text(dataset[0])
    users = ('user', 'user_age', 'user_gender', 'user_occupation', 'user_zip')
    items = ('item', 'item_genres', 'item_title')
    assert ExposureFeatures(out).fields == tokens(out, 'Test').fields == users + items
    assert text.sentence(user=1, item=0) == (
        'user is 2 user age is under 18 user gender is f user occupation is other '
        'user zip is t8h1n item is 1 item genres is animation, comedy '
        'item title is tin dog ( 1995 )'
    )
    dataset = MovieLens(tmp_path / '25m', '25m', log=False)
    out = FieldText(**dataset.field_text())(dataset[0])
    assert ExposureFeatures(out).fields == ('user', *items)


def test_a_cache_without_zip_codes_is_refused(tmp_path, monkeypatch):
    write_100k(tmp_path / 'raw')
    with monkeypatch.context() as earlier:
        earlier.setattr(MovieLens, 'schema_version', ClickDataset.schema_version)
        MovieLens(tmp_path, '100k', log=False)
    with pytest.raises(ValueError, match='schema_version was 2, is now 3.* Pass force_reload=True'):
        MovieLens(tmp_path, '100k', log=False)


def test_both_copies_of_100k_are_equal(tmp_path):
    write_100k(tmp_path / 'grouplens' / 'raw')
    write_recbole(tmp_path / 'recbole' / 'raw')
    one = MovieLens(tmp_path / 'grouplens', '100k', log=False)
    other = MovieLens(tmp_path / 'recbole', '100k', log=False)
    assert one.names == other.names
    assert one.titles.tolist() == other.titles.tolist()
    assert one.describe('user')['zip'].tolist() == other.describe('user')['zip'].tolist()
    for ours, theirs in zip(one[0].stores, other[0].stores):
        assert list(ours.keys()) == list(theirs.keys())
        for key, value in ours.items():
            is_equal = torch.equal if torch.is_tensor(value) else operator.eq
            assert is_equal(value, theirs[key]), key


def test_node_without_metadata_is_unknown(tmp_path):
    write_dat(tmp_path / 'raw')
    write(tmp_path / 'raw' / 'ratings.dat', lines([*RATINGS, (9, 77, 4, 1)], '::'))
    dataset = MovieLens(tmp_path, '1m', log=False)
    data, names = dataset[0], dataset.names
    assert dataset.raw_ids['user'].tolist() == [1, 2, 3, 9]
    assert dataset.titles.tolist()[-1] is None
    assert dataset.texts[-1] == 'unknown'
    assert names['gender'][data['user'].gender[-1]] == 'unknown'
    assert names['age'][data['user'].age[-1]] == 'unknown'
    assert names['category'][data['item'].category[-1]] == 'unknown'
    assert names['year'][data['item'].year[-1]] == 'unknown'


def test_equals_plain_python_on_1m(tmp_path):
    root = os.environ.get('MAG_DATA')
    if root is None:
        pytest.skip('MAG_DATA, the folder of ml-1m/, is not set')
    folder = os.path.join(root, 'ml-1m')
    os.symlink(folder, tmp_path / 'raw')
    dataset = MovieLens(tmp_path, '1m', log=False)
    data = dataset[0]

    with open(os.path.join(folder, 'ratings.dat')) as file:
        rows = [tuple(map(int, line.split('::'))) for line in file]
    rows.sort(key=lambda row: row[3])
    users = sorted({row[0] for row in rows})
    items = sorted({row[1] for row in rows})
    assert (len(rows), len(users), len(items)) == (1_000_209, 6040, 3706)
    user_of = {user: node for node, user in enumerate(users)}
    item_of = {item: node for node, item in enumerate(items)}
    index = torch.tensor([(user_of[row[0]], item_of[row[1]]) for row in rows]).t()
    label = torch.tensor([row[2] >= 4 for row in rows])
    time = torch.tensor([row[3] for row in rows])
    store = data[CLICKS]
    assert torch.equal(store.edge_label_index, index)
    assert torch.equal(store.edge_label, label.float())
    assert torch.equal(store.edge_label_time, time)
    assert torch.equal(store.edge_index, index[:, label])
    assert torch.equal(store.time, time[label])
    assert store.time.numel() == 575_281

    assert dataset.texts[0] == "Toy Story (1995). Animation, Children's, Comedy"
    # Each of them is a file.
    names, ids, titles = dataset.names, dataset.raw_ids, dataset.titles.tolist()
    with open(os.path.join(folder, 'movies.dat'), encoding='latin-1') as file:
        movies = {int(row[0]): row[1:] for row in (line.rstrip('\n').split('::') for line in file)}
    assert names['category'] == GENRES[1:]
    for node, item in enumerate(ids['item'].tolist()):
        title, genres = movies[item]
        assert titles[node] == title
        assert names['category'][data['item'].category[node]] == genres.split('|')[0]
        assert names['year'][data['item'].year[node]] == title[-5:-1]
    listed = [[name in movies[item][1].split('|') for name in names['category']] for item in items]
    assert torch.equal(data['item'].x_genre, torch.tensor(listed).float())
    with open(os.path.join(folder, 'users.dat')) as file:
        people = {int(row[0]): row for row in (line.split('::') for line in file)}
    assert ids['user'].tolist() == users
    assert dataset.describe('user')['zip'].tolist() == [
        people[user][4].rstrip('\n') for user in users
    ]
    assert data['user'].occupation.tolist() == [int(people[user][3]) for user in users]
    assert [names['gender'][code] for code in data['user'].gender] == [
        people[user][1] for user in users
    ]
    ages = [1, 18, 25, 35, 45, 50, 56]
    assert [ages[code] for code in data['user'].age] == [int(people[user][2]) for user in users]


def test_100k_for_real(tmp_path, network):
    try:
        dataset = MovieLens(tmp_path, '100k', log=False)
    except RuntimeError as error:
        pytest.skip(str(error))
    data = dataset[0]
    store = data[CLICKS]
    assert (data['user'].num_nodes, data['item'].num_nodes) == (943, 1682)
    assert store.edge_label.numel() == 100_000
    assert store.edge_label.sum() == store.time.numel() == 55_375
    assert (store.time[0], store.time[-1]) == (874724710, 893286638)
    assert dataset.titles[1411] == 'Land Before Time III: The Time of the Great Giving (1995) (V)'
    assert dataset.titles[542] == 'Misérables, Les (1995)'
    assert dataset.titles[266] == 'unknown'
    assert data['item'].x_genre.sum() == 2893


@pytest.mark.parametrize(
    'file, row, pieces',
    [
        (
            'movies.dat',
            '2::Other::War',
            ['movies.dat must have one row for the item 2, but got 2.'],
        ),
        (
            'users.dat',
            '3::M::25::7::00000',
            ['users.dat must have one row for the user 3, but got 2.'],
        ),
        (
            'ratings.dat',
            '1::2::nan::9',
            [
                "ratings.dat: column 'rating' must hold",
                '0 to 5, but got nan where user 1, item 2, time 9',
            ],
        ),
        ('ratings.dat', '1::2::99::9', ["'rating' must hold a number from 0 to 5, but got 99.0"]),
        ('ratings.dat', '1::2::-1::9', ["'rating' must hold a number from 0 to 5, but got -1.0"]),
    ],
)
def test_row_that_does_not_belong(tmp_path, file, row, pieces):
    write_dat(tmp_path / 'raw')
    with open(tmp_path / 'raw' / file, 'a') as raw:
        raw.write(f'{row}\n')
    with pytest.raises(ValueError) as error:
        MovieLens(tmp_path, '1m', log=False)
    for piece in pieces:
        assert piece in str(error.value)


def test_what_is_left_of_the_raw_files_is_compared(tmp_path):
    raw = tmp_path / 'raw' / 'ml-latest-small'
    write_csv(raw)
    times = MovieLens(tmp_path, 'latest-small', log=False)[0][CLICKS].time.tolist()
    (raw / 'movies.csv').unlink()
    assert MovieLens(tmp_path, 'latest-small', log=False)[0][CLICKS].time.tolist() == times
    with open(raw / 'ratings.csv', 'a') as file:
        file.write('9,1,5,1\n')
    with pytest.raises(ValueError, match=r'ratings\.csv had \d+ bytes, has now'):
        MovieLens(tmp_path, 'latest-small', log=False)
    (raw / 'ratings.csv').unlink()
    assert MovieLens(tmp_path, 'latest-small', log=False)[0][CLICKS].time.tolist() == times


def fake_release(path, name, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for file, text in files.items():
            archive.writestr(f'{name}/{file}', text)


def serve(monkeypatch, path):
    class Response:
        headers = {'Content-Length': str(path.stat().st_size)}

        def __enter__(self):
            self.file = open(path, 'rb')
            self.read = self.file.read
            return self

        def __exit__(self, *error):
            self.file.close()

    urls = []

    def urlopen(url, timeout):
        urls.append(url)
        return Response()

    monkeypatch.setattr(_download, 'urlopen', urlopen)
    return urls


def test_download(tmp_path, monkeypatch):
    write_csv(tmp_path / 'files')
    files = {path.name: path.read_text() for path in (tmp_path / 'files').iterdir()}
    fake_release(tmp_path / 'a.zip', 'ml-latest-small', files | {'links.csv': 'x'})
    urls = serve(monkeypatch, tmp_path / 'a.zip')
    dataset = MovieLens(tmp_path / 'root', 'latest-small', log=False)
    assert urls == ['https://files.grouplens.org/datasets/movielens/ml-latest-small.zip']
    assert dataset[0][CLICKS].edge_label.tolist() == [1, 0, 1, 0, 1]
    raw = tmp_path / 'root' / 'raw'
    assert sorted(os.listdir(raw)) == ['ml-latest-small']
    assert sorted(os.listdir(raw / 'ml-latest-small')) == ['movies.csv', 'ratings.csv']
    MovieLens(tmp_path / 'root', 'latest-small', force_reload=True, log=False)
    assert len(urls) == 1


def test_what_a_killed_download_left_is_removed(tmp_path, monkeypatch):
    partial = tmp_path / 'raw' / 'download.partial'
    partial.mkdir(parents=True)
    (partial / 'ml-1m.zip').write_text('half')
    monkeypatch.setattr(MovieLens, 'url', 'http://127.0.0.1:9')
    with pytest.raises(RuntimeError, match='could not be downloaded'):
        MovieLens(tmp_path, '1m', log=False)
    assert os.listdir(tmp_path / 'raw') == []


def test_download_with_a_wrong_checksum(tmp_path, monkeypatch):
    fake_release(tmp_path / 'a.zip', 'ml-1m', {})
    serve(monkeypatch, tmp_path / 'a.zip')
    with pytest.raises(RuntimeError) as error:
        MovieLens(tmp_path / 'root', '1m', log=False)
    assert 'must be c4d9eecfca2ab87c1945afe126590906' in str(error.value)
    assert os.listdir(tmp_path / 'root' / 'raw') == []


def test_wheel_with_a_wrong_checksum(tmp_path, monkeypatch):
    write_recbole(tmp_path / 'files')

    def run(command, **kwargs):
        folder = command[command.index('--dest') + 1]
        with zipfile.ZipFile(os.path.join(folder, 'recbole.whl'), 'w') as wheel:
            for path in (tmp_path / 'files').iterdir():
                wheel.write(path, f'recbole/dataset_example/ml-100k/{path.name}')
        return subprocess.CompletedProcess(command, 0, '', '')

    monkeypatch.setattr(_download.subprocess, 'run', run)
    with pytest.raises(RuntimeError) as error:
        MovieLens(tmp_path / 'root', '100k', log=False)
    assert 'the sha256 of recbole.whl must be' in str(error.value)
    assert f'must be {movie_lens._RECBOLE_SHA256}, but got' in str(error.value)
    assert os.listdir(tmp_path / 'root' / 'raw') == []


def use_index(monkeypatch, folder):
    r"""Makes pip look into a folder alone."""
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))


def test_no_source_package_is_run(tmp_path, monkeypatch):
    index, canary = tmp_path / 'index', tmp_path / 'canary'
    index.mkdir()
    with tarfile.open(index / 'recbole-1.2.1.tar.gz', 'w:gz') as archive:
        for name, text in (
            ('setup.py', f"open({str(canary)!r}, 'w').close()\n"),
            # So that it needs no package to be run.
            (
                'pyproject.toml',
                "[build-system]\nrequires = []\nbuild-backend = 'setup'\nbackend-path = ['.']\n",
            ),
        ):
            member = tarfile.TarInfo(f'recbole-1.2.1/{name}')
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    use_index(monkeypatch, index)
    with pytest.raises(RuntimeError) as error:
        MovieLens(tmp_path / 'root', '100k', log=False)
    assert not canary.exists()
    assert 'recbole==1.2.1: ERROR: No matching distribution found for recbole==1.2.1)' in str(
        error.value
    )
    assert '\n' not in str(error.value)
    assert os.listdir(tmp_path / 'root' / 'raw') == []


def write_wheel(folder, files):
    r"""Writes what pip takes for the wheel, and returns its hash."""
    path = folder / 'recbole-1.2.1-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr(
            'recbole-1.2.1.dist-info/METADATA',
            'Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n',
        )
        wheel.writestr(
            'recbole-1.2.1.dist-info/WHEEL',
            'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        )
        wheel.writestr('recbole-1.2.1.dist-info/RECORD', '')
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_wheel_of_pip(tmp_path, monkeypatch):
    write_recbole(tmp_path / 'files')
    files = {
        f'recbole/dataset_example/ml-100k/{path.name}': path.read_bytes()
        for path in (tmp_path / 'files').iterdir()
    }
    found = write_wheel(tmp_path, files | {'../../escaped': '', '/escaped': ''})
    use_index(monkeypatch, tmp_path)
    with pytest.raises(RuntimeError) as error:
        MovieLens(tmp_path / 'root', '100k', log=False)
    expected = movie_lens._RECBOLE_SHA256
    assert f'the sha256 of recbole==1.2.1 must be {expected}, but got {found})' in str(error.value)
    assert '\n' not in str(error.value)
    assert os.listdir(tmp_path / 'root' / 'raw') == []

    monkeypatch.setattr(movie_lens, '_RECBOLE_SHA256', found)
    dataset = MovieLens(tmp_path / 'root', '100k', log=False)
    assert dataset[0][CLICKS].edge_label.tolist() == [1, 0, 1, 0, 1]
    assert os.listdir(tmp_path / 'root' / 'raw') == ['ml-100k']
    names = ['ml-100k.inter', 'ml-100k.item', 'ml-100k.user']
    assert sorted(os.listdir(tmp_path / 'root' / 'raw' / 'ml-100k')) == names
    assert not list(tmp_path.rglob('escaped'))


def test_damaged_archive(tmp_path, monkeypatch):
    fake_release(tmp_path / 'a.zip', 'ml-latest-small', {'ratings.csv': 'x', 'movies.csv': 'x'})
    whole = (tmp_path / 'a.zip').read_bytes()
    method = whole.index(b'PK\1\2') + 10
    for damaged in (whole[:-30], whole[:method] + b'\x63' + whole[method + 1 :]):
        (tmp_path / 'a.zip').write_bytes(damaged)
        serve(monkeypatch, tmp_path / 'a.zip')
        with pytest.raises(RuntimeError, match=r'ml-latest-small\.zip cannot be unpacked: '):
            MovieLens(tmp_path / 'root', 'latest-small', log=False)
        assert os.listdir(tmp_path / 'root' / 'raw') == []


def test_nothing_can_be_had(tmp_path, monkeypatch):
    def run(command, **kwargs):
        assert command[:4] == [sys.executable, '-m', 'pip', 'download']
        return subprocess.CompletedProcess(command, 1, '', 'ERROR: first\nERROR: no index\n')

    monkeypatch.setattr(_download.subprocess, 'run', run)
    with pytest.raises(RuntimeError) as error:
        MovieLens(tmp_path, '100k', log=False)
    for piece in (
        "'100k' could not be downloaded",
        'no network',
        'recbole==1.2.1: ERROR: no index',
        'https://files.grouplens.org/datasets/movielens/ml-100k.zip',
        'u.data, u.item, u.user',
        str(tmp_path / 'raw' / 'ml-100k'),
    ):
        assert piece in str(error.value)
    assert not (tmp_path / 'processed').exists()


def test_file_put_there_is_never_replaced(tmp_path):
    write(tmp_path / 'raw' / 'u.data', lines(RATINGS, '\t'))
    with pytest.raises(FileNotFoundError) as error:
        MovieLens(tmp_path, '100k', log=False)
    assert 'has u.data, but not u.item and u.user' in str(error.value)


@pytest.mark.parametrize('name', ['2m', 'ml-1m', '', None, 100])
def test_unknown_name(tmp_path, name):
    with pytest.raises(
        ValueError, match=f"'name' must be one of '100k', '1m', .* but got {name!r}"
    ):
        MovieLens(tmp_path, name)


@pytest.mark.parametrize(
    'file, text, pieces',
    [
        (
            'ratings.dat',
            '1::1::5::3\n1::x::5::3\n',
            ['ratings.dat, line 2', "'item' must hold a whole number, but got 'x'"],
        ),
        (
            'ratings.dat',
            '1::1::5::3\n1::1::five::3\n',
            ['line 2', "'rating' must hold a number, but got 'five'"],
        ),
        (
            'ratings.dat',
            '1::1::5::3\n1::1::5::\n',
            ['line 2', "'time' must hold a whole number, but got nothing"],
        ),
        (
            'ratings.dat',
            '1::1::5::3\n1::1::5\n',
            ['line 2', 'a row must have 4 columns, but got 3'],
        ),
        (
            'ratings.dat',
            '1\t1\t5\t3\n',
            ['line 1', "'user' must hold a whole number, but got '1\\t1\\t5\\t3'"],
        ),
        ('ratings.dat', '', ['must hold rows', 'ratings.dat']),
        (
            'movies.dat',
            'one::Tin Dog::Comedy\n',
            ['movies.dat, line 1', "'id' must hold a whole number, but got 'one'"],
        ),
        (
            'users.dat',
            '1::F::young::2::0\n',
            ['users.dat, line 1', "'age' must hold a whole number, but got 'young'"],
        ),
    ],
)
def test_bad_files(tmp_path, file, text, pieces):
    write_dat(tmp_path / 'raw')
    write(tmp_path / 'raw' / file, text)
    with pytest.raises(ValueError) as error:
        MovieLens(tmp_path, '1m', log=False)
    for piece in pieces:
        assert piece in str(error.value)
    assert not (tmp_path / 'processed').exists()


def test_genre_flag_that_is_no_flag(tmp_path):
    write_100k(tmp_path / 'raw')
    path = tmp_path / 'raw' / 'u.item'
    write(path, path.read_text(encoding='latin-1').replace('|0|1|', '|0|3|', 1), 'latin-1')
    match = r"u\.item: column 'genre_3' must hold 0 or 1, but got 3 where id 1\.$"
    with pytest.raises(ValueError, match=match):
        MovieLens(tmp_path, '100k', log=False)


def test_csv_without_a_column(tmp_path):
    write_csv(tmp_path / 'raw')
    write(tmp_path / 'raw' / 'ratings.csv', 'userId,movieId,stars,timestamp\n1,1,5,3\n')
    with pytest.raises(
        ValueError, match="must have a column 'rating', but its columns are 'userId', 'movieId'"
    ):
        MovieLens(tmp_path, '25m', log=False)
