import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Cell } from '../src/runs.ts';
import { checkReference, collectTargets, type Targets } from '../src/targets.ts';
import type { Node } from '../src/tree.ts';

const cell = (identifier: string, shown: Cell['shown'] = 'show'): Cell => ({
  type: 'cell',
  identifier,
  code: '',
  language: 'python',
  shown,
  input: 'show',
  output: 'show',
});
const reference = (identifier: string, words: string): Node => ({
  type: 'crossReference',
  identifier,
  label: identifier,
  template: '',
  children: [{ type: 'text', value: words }],
});

function targets(): Targets {
  const found: Targets = new Map();
  const nodes: Node[] = [
    cell('fig-a'),
    { type: 'container', kind: 'table', identifier: 'tab-a', html_id: 'tab-a' },
    cell('fig-b'),
    cell('wid-a'),
    cell('tab-b'),
    { type: 'math', identifier: 'eq-a', html_id: 'eq-a', enumerator: '4' },
    cell('fig-hidden', 'remove'),
    { type: 'ask', fold: [cell('fig-c')] },
    { type: 'heading', identifier: 'why', html_id: 'why' },
  ];
  assert.deepEqual(collectTargets(nodes, 'p', 'p.md', found), []);
  return found;
}

test('each kind is counted through the page, folds included, removed cells not', () => {
  const found = targets();
  const numbers = Object.fromEntries([...found].map(([label, t]) => [label, `${t.word} ${t.number}`.trim()]));
  assert.deepEqual(numbers, {
    'fig-a': 'Figure 1',
    'tab-a': 'Table 1',
    'fig-b': 'Figure 2',
    'wid-a': 'Widget 1',
    'tab-b': 'Table 2',
    'eq-a': 'Equation 4',
    'fig-c': 'Figure 3',
    why: '',
  });
});

test('a label that does not say its kind is refused', () => {
  assert.match(collectTargets([cell('row')], 'p', 'p.md', new Map())[0]!.remedy, /fig-, tab- or wid-/);
});

test('a written number must be the right one', () => {
  const found = targets();
  assert.equal(checkReference(reference('fig-b', 'Figure 2'), found, 'p.md'), undefined);
  assert.equal(checkReference(reference('eq-a', 'equation (4)'), found, 'p.md'), undefined);
  assert.equal(checkReference(reference('fig-b', 'the right-hand side'), found, 'p.md'), undefined);
  assert.match(checkReference(reference('fig-b', 'Figure 1'), found, 'p.md')!.remedy, /write \[Figure 2\]\(#fig-b\)/);
  assert.match(checkReference(reference('tab-b', 'Figure 2'), found, 'p.md')!.what, /which is Table 2/);
});

test('a reference without words of its own, or without target, is refused', () => {
  assert.match(checkReference(reference('fig-a', 'Notebook-code'), targets(), 'p.md')!.what, /no words of its own/);
  assert.match(
    checkReference(reference('nowhere', 'Figure 1'), targets(), 'p.md')!.what,
    /nothing in the book is labelled "nowhere"/,
  );
});
