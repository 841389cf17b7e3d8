import tracemalloc

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random_array

from mag.files import write_tensors
from mag.macro_graph.grouping import (
    Grouping,
    macro_behavior,
    random_signs,
    raw_behavior,
    sample_nodes,
)


def blobs(seed: int, num_rows: int = 600, num_blobs: int = 8, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(num_blobs, width, generator=generator)
    blob = torch.randint(num_blobs, (num_rows,), generator=generator)
    return centers[blob] + torch.randn(num_rows, width, generator=generator)


def squared_distances(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return (x.unsqueeze(1) - centroids).square().sum(-1)


def lloyd_objective(x: torch.Tensor, num_clusters: int, seed: int) -> float:
    r"""Lloyd's k-means from a k-means++ start, 25 iterations."""
    generator = torch.Generator().manual_seed(seed)
    centroids = x[torch.randint(len(x), (1,), generator=generator)]
    for _ in range(num_clusters - 1):
        nearest = squared_distances(x, centroids).amin(1)
        centroids = torch.cat([centroids, x[nearest.multinomial(1, generator=generator)]])
    for _ in range(25):
        cluster = squared_distances(x, centroids).argmin(1)
        for p in cluster.unique():
            centroids[p] = x[cluster == p].mean(0)
    return squared_distances(x, centroids).amin(1).sum().item()


@pytest.mark.parametrize('data_seed', range(3))
def test_objective_against_lloyd(data_seed):
    r"""The best of ten starts is within 0.1 % of the best of the reference, their mean within
    10 %: which local minimum one start falls into is chance."""
    x = blobs(data_seed)
    found, reference = [], []
    for seed in range(10):
        grouping = Grouping(8, seed=seed)
        cluster = grouping.fit(x)
        found.append((x - grouping.centroids[cluster]).square().sum().item())
        reference.append(lloyd_objective(x.clone(), 8, seed))
    assert min(found) <= 1.001 * min(reference)
    assert np.mean(found) <= 1.1 * np.mean(reference)


def test_separated_blobs_are_found():
    blob = torch.arange(60) % 3
    x = 100 * torch.eye(3)[blob] + torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    cluster = Grouping(3).fit(x)
    assert len({(b.item(), c.item()) for b, c in zip(blob, cluster, strict=True)}) == 3


def test_same_seed_same_clusters():
    x = blobs(0)
    first, second, other = Grouping(8, seed=3), Grouping(8, seed=3), Grouping(8, seed=4)
    assert torch.equal(first.fit(x), second.fit(x))
    assert torch.equal(first.centroids, second.centroids)
    other.fit(x)
    assert not torch.equal(first.centroids, other.centroids)


def test_all_points_are_used():
    r"""FAISS would sample 256 a cluster; the only centroid is the mean of all 20,000."""
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    grouping = Grouping(1)
    assert grouping.fit(x).unique().tolist() == [0]
    assert torch.allclose(grouping.centroids[0], x.mean(0), atol=1e-5)


def test_of_many_rows_a_sample_is_used():
    r"""The only centroid is the mean of 65,536 rows: those of the nodes that are drawn, whatever
    other nodes lie between them."""
    x = torch.randn(70_000, 2, generator=torch.Generator().manual_seed(0))
    node = 3 * torch.arange(70_000) + 1
    chosen = sample_nodes(node.numpy(), 2**16, 5)
    grouping = Grouping(1, seed=5)
    assert grouping.fit(x, node).shape == (70_000,)
    assert torch.allclose(grouping.centroids[0], x[chosen].mean(0), atol=1e-5)
    assert (grouping.centroids[0] - x.mean(0)).abs().max() > 1e-4
    assert Grouping(300).max_points == 300 * 256


def test_samples_of_nodes():
    r"""A sample is of its size, part of any larger one of the same nodes, and found again in a
    part of the nodes; a seed draws anew."""
    node = np.arange(0, 4000, 2)
    drawn = node[sample_nodes(node, 300, 0)]
    assert len(drawn) == len({*drawn}) == 300 and (np.diff(drawn) > 0).all()
    assert abs(drawn.mean() - 2000) < 4 * 4000 / np.sqrt(12 * 300)
    larger = node[sample_nodes(node, 900, 0)]
    assert {*drawn} < {*larger}
    assert (larger[sample_nodes(larger, 300, 0)] == drawn).all()
    assert {*drawn} != {*node[sample_nodes(node, 300, 1)]}
    assert sample_nodes(node, 2000, 0).tolist() == [*range(2000)]


@pytest.mark.parametrize('width', [3, 20, 64])
def test_a_row_gets_the_same_cluster_in_any_company(width):
    r"""Rows halfway between two centroids, up to rounding."""
    generator = torch.Generator().manual_seed(0)
    grouping = Grouping(30)
    grouping.fit(torch.randn(500, width, generator=generator))
    left, right = grouping.centroids[torch.randint(30, (2, 9000), generator=generator)]
    x = (left + right) / 2
    cluster = grouping.assign(x)
    order = torch.randperm(9000, generator=generator)
    assert torch.equal(grouping.assign(x[order]), cluster[order])
    for size in (1, 19, 21, 333, 4097):
        assert torch.equal(grouping.assign(x[:size]), cluster[:size])


def test_of_centroids_as_near_the_first_is_taken():
    grouping = Grouping(3)
    grouping.fit(torch.eye(3))
    grouping.centroids = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    x = torch.tensor([[1.0, 0.0], [2.0, 0.5], [2.0, -0.5], [1.0, 1e-3], [1.0, -1e-3]])
    assert grouping.assign(x).tolist() == [1, 0, 0, 1, 2]


def test_converged_centroids_are_means():
    x = blobs(1)
    grouping = Grouping(8, num_iterations=100)
    cluster = grouping.fit(x)
    assert cluster.dtype == torch.long
    assert cluster.unique().tolist() == list(range(8))
    for p in range(8):
        assert torch.allclose(grouping.centroids[p], x[cluster == p].mean(0), atol=1e-4)


@pytest.mark.parametrize('spherical', [False, True])
def test_assign_is_nearest(spherical):
    grouping = Grouping(8, spherical=spherical)
    cluster = grouping.fit(blobs(0))
    assert torch.equal(cluster, grouping.assign(blobs(0)))
    unseen = blobs(7, num_rows=200)
    expected = squared_distances(unseen, grouping.centroids).argmin(1)
    assert torch.equal(grouping.assign(unseen), expected)
    assert grouping.assign(unseen[:0]).tolist() == []


def test_spherical_centroids_are_unit_vectors():
    x = torch.nn.functional.normalize(blobs(0), dim=1)
    grouping = Grouping(8, spherical=True)
    cluster = grouping.fit(x)
    assert torch.allclose(grouping.centroids.norm(dim=1), torch.ones(8), atol=1e-5)
    # Nearest by angle.
    assert torch.equal(cluster, (x @ grouping.centroids.t()).argmax(1))


def test_zero_rows():
    r"""Nodes without behavior have a zero row, and share a cluster."""
    x = torch.cat([torch.zeros(5, 3), torch.eye(3)[torch.arange(30) % 3]])
    cluster = Grouping(4).fit(x)
    assert len(set(cluster[:5].tolist())) == 1
    assert cluster[0].item() not in cluster[5:].tolist()


def test_as_many_clusters_as_rows():
    assert Grouping(4).fit(torch.eye(4)).sort().values.tolist() == [0, 1, 2, 3]


def test_save_and_load(tmp_path):
    grouping = Grouping(8, spherical=True, num_iterations=7, seed=5)
    cluster = grouping.fit(blobs(0))
    grouping.save(tmp_path / 'grouping.pt')
    loaded = Grouping.load(tmp_path / 'grouping.pt')
    assert repr(loaded) == repr(grouping)
    assert repr(grouping) == 'Grouping(num_clusters=8, spherical=True, num_iterations=7, seed=5)'
    assert torch.equal(loaded.centroids, grouping.centroids)
    assert torch.equal(loaded.assign(blobs(0)), cluster)
    assert [path.name for path in tmp_path.iterdir()] == ['grouping.pt']


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'grouping.pt'
    grouping = Grouping(8)
    grouping.fit(blobs(0))
    grouping.save(path)
    before = path.read_bytes()

    def interrupted(state, file):
        file.write(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', interrupted)
    grouping.fit(blobs(1))
    with pytest.raises(KeyboardInterrupt):
        grouping.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ['grouping.pt']


def test_load_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        Grouping.load(tmp_path / 'none.pt')
    (tmp_path / 'text.pt').write_text('no grouping')
    with pytest.raises(ValueError, match=r'text\.pt.*no file that mag wrote\. Fit the grouping'):
        Grouping.load(tmp_path / 'text.pt')


@pytest.mark.parametrize('write', [torch.save, write_tensors])
def test_loading_runs_nothing(tmp_path, write, planted):
    path, canary = tmp_path / 'grouping.pt', tmp_path / 'canary'
    write({'num_clusters': 3, 'centroids': planted(canary)}, path)
    with pytest.raises(ValueError, match=r'(no file that|not written by) mag.*Fit the grouping'):
        Grouping.load(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'centroids': 'far'}, r"of shape \[3, D\], but got 'far'\."),
        ({'centroids': torch.ones(2, 4)}, r'of shape \[3, D\], but got shape \[2, 4\]\.'),
        ({'centroids': torch.ones(3)}, r'but got shape \[3\]\.'),
        ({'centroids': torch.ones(3, 0)}, '.*at least 1, but got 0'),
        ({'centroids': torch.full((3, 4), torch.nan)}, 'such as nan in row 0'),
        ({'centroids': torch.ones(3, 4, dtype=torch.double)}, 'of dtype float32'),
        ({'num_clusters': '3'}, "'num_clusters'"),
        ({'color': 1}, 'color'),
    ],
)
def test_load_refuses_what_is_no_grouping(tmp_path, changes, sentence):
    path = tmp_path / 'grouping.pt'
    state = {'num_clusters': 3, 'spherical': False, 'num_iterations': 5, 'seed': 0}
    state['centroids'] = torch.eye(3, 4)
    write_tensors(state, path)
    assert Grouping.load(path).centroids.tolist() == torch.eye(3, 4).tolist()
    write_tensors(state | changes, path)
    with pytest.raises(ValueError, match=rf'grouping\.pt. is not a saved Grouping: .*{sentence}'):
        Grouping.load(path)
    write_tensors([1], path)
    with pytest.raises(ValueError, match='is not a saved Grouping'):
        Grouping.load(path)


@pytest.mark.parametrize(
    ('make', 'error', 'match'),
    [
        (lambda: Grouping(0), ValueError, "'num_clusters'.*got 0"),
        (lambda: Grouping(2.0), TypeError, "'num_clusters'.*got 2.0"),
        (lambda: Grouping(2, num_iterations=0), ValueError, "'num_iterations'.*got 0"),
        (lambda: Grouping(2, seed='a'), TypeError, "'seed'.*got 'a'"),
        (
            lambda: Grouping(2).fit(torch.ones(3)),
            ValueError,
            r'\[num_nodes, D\], but got shape \[3\]',
        ),
        (lambda: Grouping(2).fit([[1.0]]), TypeError, 'but got list'),
        (lambda: Grouping(9).fit(torch.eye(3)), ValueError, '9 clusters.*but got 3'),
        (
            lambda: Grouping(1).fit(torch.tensor([[0.0], [torch.nan]])),
            ValueError,
            'float32 can sum, .* in row 1',
        ),
        (
            lambda: Grouping(1).fit(torch.full((4, 2), 1e25)),
            ValueError,
            'float32 can sum, .* in row 0',
        ),
        (
            lambda: Grouping(1).fit(torch.eye(4), torch.arange(3)),
            ValueError,
            r"'node' of shape \[4\], but got shape \[3\]",
        ),
        (lambda: Grouping(1).fit(torch.empty(4, 0)), ValueError, 'at least 1, but got 0'),
        (lambda: Grouping(2).assign(torch.eye(2)), RuntimeError, "call 'fit' or 'load' first"),
        (lambda: Grouping(2).save('grouping.pt'), RuntimeError, 'has not been fitted'),
        (lambda: raw_behavior(csr_matrix((2, 2)), 0, 0), ValueError, "'projection_dim'.*0"),
    ],
)
def test_errors(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_assign_of_another_width():
    grouping = Grouping(2)
    grouping.fit(torch.eye(3))
    with pytest.raises(ValueError, match=r'of shape \[num_nodes, 3\], but got shape \[2, 2\]'):
        grouping.assign(torch.eye(2))


def test_macro_behavior():
    assert macro_behavior(torch.tensor([[3, 4], [0, 0], [0, 2]])).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0, 0],
        [0, 1],
    ]


def random_clicks(num_users: int, num_items: int, clicks_each: int) -> csr_matrix:
    clicks = random_array(
        (num_users, num_items),
        density=clicks_each / num_items,
        rng=np.random.default_rng(0),
        dtype=np.float32,
    )
    clicks.data[:] = 1
    return csr_matrix(clicks)


def split_mix(state: int) -> int:
    r"""The step of SplitMix64, in integers without end."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_random_signs_are_bits_of_a_hash():
    start = int(np.random.SeedSequence((7, 2)).generate_state(1, np.uint64)[0])
    signs = random_signs(np.array([5, 0, 123_456_789]), 100, 7)
    for row, column in zip(signs.tolist(), (5, 0, 123_456_789), strict=True):
        words = [split_mix(split_mix(start ^ column) ^ place) for place in (0, 1)]
        assert row == [2.0 * (words[d // 64] >> d % 64 & 1) - 1 for d in range(100)]


def test_random_signs_are_even_and_independent():
    r"""Means of columns, of dimensions, and products of any two of either are of the size of
    chance."""
    signs = random_signs(np.arange(512), 512, 0)
    for table in (signs, signs.T):
        products = table @ table.T / 512
        np.fill_diagonal(products, 0)
        # Of 131,072 pairs.
        assert np.abs(products).max() < 5.5 / 512**0.5
        assert np.abs(products.std() - 512**-0.5) < 0.01 * 512**-0.5
        assert np.abs(table.mean(axis=1)).max() < 4.5 / 512**0.5


def test_raw_behavior_of_few_columns_is_exact():
    clicks = csr_matrix(np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]]))
    half = 0.5**0.5
    rows = raw_behavior(clicks, 4, 0)
    assert torch.allclose(rows, torch.tensor([[half, half, 0, 0], [0] * 4, [0, 1, 0, 0]]))


def test_raw_behavior_of_few_columns_has_room_for_more():
    clicks = random_clicks(20, 50, 10)
    rows = raw_behavior(clicks, 64, 0)
    assert rows.shape == (20, 64)
    assert torch.equal(rows[:, :50], raw_behavior(clicks, 50, 0))
    assert bool((rows[:, 50:] == 0).all())


def test_low_precision():
    embedding = torch.tensor([[0.0], [0.1], [8.0], [8.1]])
    cluster = Grouping(2).fit(embedding.bfloat16())
    assert torch.equal(cluster, Grouping(2).fit(embedding))


def test_raw_behavior_of_some_columns():
    r"""Clicks on other columns count in the norm, and are nowhere else."""
    clicks = random_clicks(40, 50, 10)
    columns = np.array([3, 8, 20, 49])
    rows = raw_behavior(clicks, 6, 0, columns)
    norm = np.sqrt(clicks.multiply(clicks).sum(axis=1))
    expected = clicks.toarray()[:, columns] / np.maximum(norm, 1e-12)
    assert rows.shape == (40, 6) and bool((rows[:, 4:] == 0).all())
    torch.testing.assert_close(rows[:, :4], torch.from_numpy(np.asarray(expected)).float())
    # A matrix that ends before a column has no clicks on it.
    assert bool((raw_behavior(clicks[:, :49], 6, 0, columns)[:, 3] == 0).all())
    # Of more columns than fit, all are projected.
    assert torch.equal(raw_behavior(clicks, 6, 0, np.arange(7)), raw_behavior(clicks, 6, 0))


def test_raw_behavior_keeps_distances():
    r"""The squared distance after a projection to D signs has mean 1 and standard deviation about
    sqrt(2 / D) of the one before."""
    clicks = random_clicks(200, 3000, 30)
    exact = raw_behavior(clicks, 3000, 0)
    projected = raw_behavior(clicks, 256, 0)
    assert projected.shape == (200, 256)
    left, right = torch.triu_indices(200, 200, offset=1)
    ratio = (projected[left] - projected[right]).square().sum(1) / (
        exact[left] - exact[right]
    ).square().sum(1)
    assert ratio.mean().item() == pytest.approx(1, abs=0.02)
    assert ratio.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.15)
    assert (ratio - 1).abs().max().item() < 6 * (2 / 256) ** 0.5


def test_raw_behavior_stays_comparable_when_columns_arrive():
    clicks = random_clicks(20, 500, 10)
    wider = csr_matrix((clicks.data, clicks.indices, clicks.indptr), shape=(20, 900))
    assert torch.equal(raw_behavior(clicks, 64, 3), raw_behavior(wider, 64, 3))
    assert not torch.equal(raw_behavior(clicks, 64, 3), raw_behavior(clicks, 64, 4))


def test_raw_behavior_is_never_dense():
    clicks = random_clicks(20_000, 20_000, 10)
    tracemalloc.start()
    raw_behavior(clicks, 64, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    dense = 4 * 20_000 * 20_000
    # Rows and signs of width 64, the clicks twice.
    assert peak < dense / 50
