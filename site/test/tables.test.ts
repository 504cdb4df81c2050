import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Entry, numeric, readTable, table } from '../src/tables.ts';

const entry = (words: string, more: Partial<Entry> = {}): Entry => ({ html: words, words, header: false, ...more });
const head = (words: string): Entry => entry(words, { header: true });
const plain = { bars: false, wide: false, caption: '', name: 'Table' };

test('numbers are recognised with separators, units and a true minus', () => {
  assert.equal(numeric('9,000,000'), 9_000_000);
  assert.equal(numeric('\u22126.02\u2009dB'), -6.02);
  assert.equal(numeric('41 %'), 41);
  assert.equal(numeric('8 bits'), undefined);
  assert.equal(numeric('1,23'), undefined);
});

test('decimals line up by hidden zeros; the first column names its row', () => {
  const html = table({
    ...plain,
    head: [[head('bits'), head('ppl')]],
    body: [
      [entry('4'), entry('65.2')],
      [entry('8'), entry('29.25')],
      [entry('16'), entry('30')],
    ],
  });
  assert.match(html, /<td>4<\/td><td class="num">65\.2<i class="pad">0<\/i><\/td>/);
  assert.match(html, /<td class="num">29\.25<\/td>/);
  assert.match(html, /<td class="num">30<i class="pad">\.00<\/i><\/td>/);
});

test('a column with words is not a column of numbers', () => {
  const html = table({
    ...plain,
    head: [],
    body: [
      [entry('a'), entry('1')],
      [entry('b'), entry('two')],
    ],
  });
  assert.doesNotMatch(html, /num/);
});

test('bars run from zero to the largest value that is not off the scale', () => {
  const html = table({
    ...plain,
    bars: true,
    head: [],
    body: [
      [entry('a'), entry('50')],
      [entry('b'), entry('25', { role: 'exact' })],
      [entry('c'), entry('9,000,000', { off: true })],
    ],
  });
  assert.match(html, /<td class="num bar" style="--v:100%">50/);
  assert.match(html, /style="--v:50%;--c:var\(--exact\)">25/);
  assert.match(html, /<td class="num bar off">9,000,000/);
});

test('the table of a cell is read with its roles', () => {
  const { head: top, body } = readTable(
    '<table border="1" class="dataframe"><thead><tr style="x"><th></th><th>ppl</th></tr></thead><tbody><tr><th>0</th><td class="exact">29.2</td></tr><tr><th>1</th><td class="off">9 &lt; 10</td></tr></tbody></table>',
  );
  assert.equal(top[0]![1]!.words, 'ppl');
  assert.deepEqual(
    body.map((row) => [row[0]!.header, row[1]!.role, row[1]!.off, row[1]!.words]),
    [
      [true, 'exact', false, '29.2'],
      [true, undefined, true, '9 < 10'],
    ],
  );
});

test('a numbered table has its number, caption and address', () => {
  const html = table({
    ...plain,
    caption: 'What it costs.',
    head: [],
    body: [[entry('a')]],
    numbered: { word: 'Table', number: '2', id: 'tab-model' },
  });
  assert.match(
    html,
    /<figure id="tab-model" class="table">.*aria-label="Table 2".*<figcaption><b>Table 2\.<\/b> What it costs\.<\/figcaption>/,
  );
});
