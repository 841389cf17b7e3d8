r"""Runs a benchmark by its name, from the root of the repository:

python benchmarks speed.hypergraph --help
"""

import argparse
import importlib
import sys

NAMES = (
    'accuracy.activity',
    'accuracy.clicks',
    'accuracy.cold',
    'accuracy.compression',
    'accuracy.conversions',
    'accuracy.cost',
    'accuracy.counts',
    'accuracy.edges',
    'accuracy.fairness',
    'accuracy.flip',
    'accuracy.fresh',
    'accuracy.freshness',
    'accuracy.hop_2_age',
    'accuracy.macro_nodes',
    'accuracy.neighbors',
    'accuracy.search',
    'accuracy.simcen',
    'accuracy.stack',
    'accuracy.store_bytes',
    'accuracy.videos',
    'speed.checksums',
    'speed.click_models',
    'speed.coarsening',
    'speed.gmcm',
    'speed.history_length',
    'speed.hyperctr',
    'speed.hypergraph',
    'speed.macgnn',
    'speed.macro_rows',
    'speed.macro_state',
    'speed.online',
    'speed.online_drills',
    'speed.online_rivals',
    'speed.scale',
    'speed.second_hop',
    'speed.srjgraph',
    'speed.stack',
    'speed.store_clusters',
    'speed.target_counts',
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python benchmarks',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('name', choices=NAMES, metavar='NAME', help=f'one of {", ".join(NAMES)}')
    name = parser.parse_args(sys.argv[1:2]).name
    # Only the one that is asked for is imported: what another needs may not be installed, and the
    # memory that imports take would count in measurements.
    importlib.import_module(name).main(sys.argv[2:])


if __name__ == '__main__':
    main()
