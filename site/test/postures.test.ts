import assert from 'node:assert/strict';
import { test } from 'node:test';
import { group, readPrediction } from '../src/postures.ts';
import type { Cell } from '../src/runs.ts';
import type { Node } from '../src/tree.ts';

const word = (value: string): Node => ({ type: 'paragraph', children: [{ type: 'text', value }] });
const cell = (shown: Cell['shown'], code = ''): Cell => ({
  type: 'cell',
  code,
  language: 'python',
  shown,
  input: 'show',
  output: 'show',
});
const admonition = (name: string, ...children: Node[]): Node => ({
  type: 'admonition',
  class: name,
  children: [{ type: 'admonitionTitle', children: [{ type: 'text', value: 'T' }] }, ...children],
});
const dropdown = (...children: Node[]): Node => ({ type: 'details', children: [{ type: 'summary', children: [] }, ...children] });
const comment = (value: string): Node => ({ type: 'comment', value });

test('a prediction takes the hidden cells and the dropdown that follow, and no more', () => {
  const out = group([admonition('ask tip'), cell('hide'), cell('remove'), dropdown(word('why')), word('after'), cell('hide')]);
  assert.deepEqual(
    out.map((n) => n.type),
    ['ask', 'paragraph', 'cell'],
  );
  assert.deepEqual(
    out[0]!.fold!.map((n) => n.type),
    ['cell', 'paragraph'],
  );
  assert.equal((out[0]!.fold![0] as Cell).shown, 'show');
});

test('an exercise takes its solution', () => {
  const out = group([{ type: 'exercise', children: [] }, cell('hide', 'assert 1'), cell('show')]);
  assert.deepEqual(
    out.map((n) => n.type),
    ['exercise', 'cell'],
  );
  assert.equal(out[0]!.fold!.length, 1);
});

test('a refuted claim ends with the second admonition of its class', () => {
  const out = group([admonition('seen', word('claim')), cell('show'), admonition('seen', word('true')), word('after')]);
  assert.deepEqual(
    out.map((n) => n.type),
    ['seen', 'paragraph'],
  );
  assert.deepEqual(
    out[0]!.fold!.map((n) => n.type),
    ['cell', 'paragraph'],
  );
});

test('comments say what a list or a run of headings is', () => {
  const heading = (depth: number): Node => ({ type: 'heading', depth, children: [] });
  const out = group([
    comment(' parts '),
    { type: 'list', children: [] },
    comment(' go '),
    word('x'),
    comment(' ways '),
    heading(3),
    word('a'),
    heading(3),
    word('b'),
    heading(2),
    comment('note to self'),
  ]);
  assert.deepEqual(
    out.map((n) => n.type),
    ['partsMap', 'go', 'ways', 'heading', 'comment'],
  );
  assert.equal(out[2]!.children!.length, 2);
});

const options: Node = { type: 'list', children: [{ type: 'listItem' }, { type: 'listItem' }] };

test('a prediction is read from its list and its comment', () => {
  const asked = readPrediction(
    admonition('ask', word('how many?'), options, comment('\nright: 2\nmeasured: 1,211\nfrom: none\nto: all\nat: [94, 0.1]\n')),
  );
  assert.equal(asked.question.length, 1);
  assert.deepEqual([asked.right, asked.measured, asked.from, asked.to, asked.at], [2, '1,211', 'none', 'all', [94, 0.1]]);
});

test('what is missing from a prediction is named', () => {
  assert.throws(() => readPrediction(admonition('ask', word('?'))), /needs a list of options/);
  assert.throws(() => readPrediction(admonition('ask', options)), /needs a comment with "right: 2"/);
  assert.throws(
    () => readPrediction(admonition('ask', options, comment('right: 3\nmeasured: x'))),
    /"right: 3" must be a number from 1 to 2/,
  );
  assert.throws(() => readPrediction(admonition('ask', options, comment('right: 1'))), /measured: value/);
  assert.throws(
    () => readPrediction(admonition('ask', options, comment('right: 1\nmeasured: x\nat: [1]'))),
    /"at" has 1 places for 2 options/,
  );
});

test('a question of a quiz has a right answer and nothing measured', () => {
  const list: Node = { type: 'list', children: [word('one'), word('two')] };
  const asked = readPrediction(admonition('ask quiz tip', word('How many?'), list, comment('right: 2')));
  assert.equal(asked.right, 2);
  assert.equal(asked.measured, '');
  assert.throws(() => readPrediction(admonition('ask tip', word('How many?'), list, comment('right: 2'))), /measured/);
  assert.throws(() => readPrediction(admonition('ask quiz tip', word('How many?'), list, comment('right: 3'))), /from 1 to 2/);
});

test('a comment asks for the score', () => {
  assert.deepEqual(
    group([comment('score'), word('after')]).map((n) => n.type),
    ['score', 'paragraph'],
  );
});
