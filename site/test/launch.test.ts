import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Page } from '../src/book.ts';
import { launches } from '../src/launch.ts';

const page = (github: string | undefined, cells = 1): Page =>
  ({ name: '01-one', file: 'lessons/01-one.md', github, run: { runs: Array(cells).fill({}) } }) as unknown as Page;

test('a page leads to Colab and Binder where the course has an address', () => {
  const html = launches(page('https://github.com/someone/lessons'));
  assert.match(html, /href="https:\/\/colab\.research\.google\.com\/github\/someone\/lessons\/blob\/gh-pages\/01-one\.ipynb"/);
  assert.match(html, /href="https:\/\/mybinder\.org\/v2\/gh\/someone\/lessons\/main\?urlpath=lab%2Ftree%2Flessons%2F01-one\.md"/);
  assert.equal(launches(page('https://github.com/someone/lessons.git/')), html);
});

test('without an address, or without code, nothing is shown', () => {
  for (const one of [page(undefined), page(''), page('https://example.org/x/y'), page('https://github.com/someone'), page('https://github.com/a/b', 0)])
    assert.equal(launches(one), '');
});
