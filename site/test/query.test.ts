import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeSearch, snippet } from '../client/query.ts';
import type { Entry } from '../src/search.ts';

const entry = (title: string, text: string, code = '', symbols = ''): Entry => ({
  title,
  where: 'Part 1',
  href: `a.html#${title}`,
  text,
  code,
  symbols,
});
const search = makeSearch([
  entry('Asymmetric grids', 'A grid with a zero point can start anywhere. The point of zero is its code.'),
  entry('Counting from zero', 'Python counts from zero, and this has no point.'),
  entry('Hessians', 'The matrix of second derivatives.', 'H = 2 * X @ X.T', 'H λ lambda'),
  entry('Outliers', 'One weight far out decides the grid.'),
]);

test('a phrase finds the section that holds it first', () => {
  const { hits, all } = search('zero point');
  assert.equal(all, true);
  assert.equal(hits[0]!.entry.title, 'Asymmetric grids');
});

test('beginnings, plurals and small slips are found', () => {
  for (const query of ['Hess', 'hessian', 'outlier', 'outleir']) assert.ok(search(query).hits.length, query);
  assert.equal(search('outleir').hits[0]!.entry.title, 'Outliers');
});

test('code is searched too', () => {
  assert.equal(search('X.T').hits[0]!.entry.title, 'Hessians');
});

test('signs of equations are found as they are read and by their names', () => {
  for (const query of ['λ', 'lambda', '\\lambda']) assert.equal(search(query).hits[0]?.entry.title, 'Hessians', query);
});

test('without a section that has all the words, some of the words are said to be found', () => {
  const { hits, all } = search('hessian python');
  assert.equal(all, false);
  assert.equal(hits.length, 2);
});

test('nothing found offers what is near, and an empty query finds nothing', () => {
  assert.deepEqual(search('qqqq').hits, []);
  assert.deepEqual(search('  '), { hits: [], all: true, instead: [] });
});

test('the snippet stands around the words', () => {
  const [before, match, after] = snippet(`${'far '.repeat(30)}here it is ${'away '.repeat(30)}`, ['it is']);
  assert.equal(match, 'it is');
  assert.match(before, /^… far .*here $/);
  assert.match(after, /^ away .*…$/);
  assert.deepEqual(snippet('short', ['none']), ['short', '', '']);
});
