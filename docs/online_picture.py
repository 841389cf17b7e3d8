r"""Takes docs/online.png: the page over a model of MovieLens-1M, after three clicks of a user.

    MAG_DATA=/path/to/data python docs/online_picture.py

MAG_DATA holds ml-1m/. A Chromium is named by CHROMIUM, or on the PATH.
"""

import asyncio
import csv
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from playwright.async_api import async_playwright, expect

from mag.datasets import LogSchema
from mag.online import Snapshot
from mag.pipeline import Pipeline
from mag.pipeline.serving import make_server, write_served

NUM_RATINGS = 100_000
DATA = Path(os.environ['MAG_DATA']) / 'ml-1m'
CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')


def write_log(path: Path) -> None:
    r"""The first ratings, with titles as ids; from 4 on they are clicks."""

    def rows(name: str) -> list[list[str]]:
        text = (DATA / name).read_text(encoding='latin-1')
        return [line.split('::') for line in text.splitlines()]

    titles = {movie: title for movie, title, _ in rows('movies.dat')}
    first = sorted(rows('ratings.dat'), key=lambda row: int(row[3]))[:NUM_RATINGS]
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['user', 'item', 'time', 'label'])
        for user, movie, rating, time in first:
            writer.writerow([user, titles[movie], time, int(int(rating) >= 4)])


async def take(folder: Path) -> None:
    write_log(folder / 'log.csv')
    columns = {name: name for name in ('user', 'item', 'time', 'label')}
    pipeline = Pipeline('count_net', groups={'user': [16], 'item': [24]}, max_epochs=2)
    pipeline.fit(LogSchema([str(folder / 'log.csv')], columns), progress=False)
    path = write_served(pipeline, folder / 'snapshots')
    # One of few clicks, whose next ones count.
    events = pipeline.events()
    clicks = np.bincount(events['user'][events['clicked'] == 1])
    (user,) = map(str, Snapshot.open(path).id_maps['user'].decode([abs(clicks - 20).argmin()]))
    server = make_server(path, str(folder / 'events.db'), port=0, page_port=0)
    await server.start()
    try:
        async with async_playwright() as driver:
            browser = await driver.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
            page = await browser.new_page(viewport={'width': 1200, 'height': 880})
            await page.goto(f'http://127.0.0.1:{server.page_port}/')
            await page.wait_for_selector('#rows tr[data-item]')
            await page.get_by_label('User', exact=True).fill(user)
            await page.get_by_label('User', exact=True).press('Enter')
            await expect(page.locator('#of-user')).to_contain_text(f'user {user} ')
            for place in (17, 15, 12):
                row = page.locator('#rows tr[data-item]').nth(place)
                item = await row.get_attribute('data-item')
                await row.get_by_role('button', name='Record').click()
                await expect(page.get_by_role('status')).to_contain_text(f'clicked {item}')
            await page.evaluate('scrollTo(0, 0)')
            await page.mouse.move(600, 5)
            await page.wait_for_timeout(1500)
            await page.screenshot(path=Path(__file__).with_name('online.png'))
    finally:
        await server.stop()


if __name__ == '__main__':
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(take(Path(name)))
