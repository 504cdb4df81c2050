import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Page } from '../src/book.ts';
import { refuted, register, sentence } from '../src/register.ts';
import type { Renderer } from '../src/renderer.ts';
import { type Node, text } from '../src/tree.ts';

const words = (value: string): Node => ({ type: 'text', value });
const paragraph = (...children: Node[]): Node => ({ type: 'paragraph', children });
const seen = (id: string, title: string, body: Node, fold: Node[] = []): Node => ({
  type: 'seen',
  html_id: id,
  children: [{ type: 'admonitionTitle', children: [words(title)] }, body],
  fold,
});
const page = (name: string, nodes: Node[], more: Partial<Page> = {}): Page =>
  ({ name, title: name, href: `${name}.html`, nodes, references: [], ...more }) as Page;
const renderer = (...pages: Page[]): Renderer =>
  ({ book: { pages }, one: (n: Node) => (n.type === 'inlineCode' ? `<code>${text(n)}</code>` : text(n)) }) as unknown as Renderer;

const claim = seen('seen-1', 'You may have seen', paragraph(words('It is '), { type: 'inlineCode', value: 'FP16' }), [
  { type: 'cell' },
  paragraph(words('It is float32. And more.')),
]);
const late = [
  seen('seen-2', 'You may have seen', paragraph(words('Sums are exact.'))),
  paragraph(words('Look closer.')),
  seen('seen-3', 'What is true', paragraph(words('Not everywhere; ask.'))),
];

test('a sentence ends with a full stop or a semicolon, not in a number', () => {
  assert.equal(sentence([words('From 3.5 to 4 it '), words('holds; then not. Or so.')]).map(text).join(''), 'From 3.5 to 4 it holds.');
  assert.equal(sentence([words('No end')]).map(text).join(''), 'No end');
});

test('a claim has what is true from its fold, or from the next of its kind', () => {
  const found = refuted(page('one', [claim, ...late]));
  assert.deepEqual(
    found.map(({ id, truth }) => [id, truth.map(text).join('')]),
    [
      ['seen-1', 'It is float32. And more.'],
      ['seen-2', 'Not everywhere; ask.'],
    ],
  );
});

test('the register links every claim to its run', () => {
  const html = register.claims!({ type: 'claims' }, renderer(page('one', [claim]), page('two', late)));
  assert.match(html, /<dt>It is <code>FP16<\/code><\/dt><dd>It is float32\. <a href="one\.html#seen-1">one: the run<\/a>/);
  assert.match(html, /href="two\.html#seen-2"/);
  assert.equal(register.claims!({ type: 'claims' }, renderer(page('none', []))), '');
});

test('run times are those of the runs, with their sum', () => {
  const run = (seconds: number): Page['run'] =>
    ({ runs: [{ source: 'assert x' }, { source: 'x' }], seconds, machine: 'torch 2, 2 CPU cores', cpu: 'A <CPU>', versions: { torch: '2' } }) as unknown as Page['run'];
  const html = register.status!({ type: 'status' }, renderer(page('one', [], { run: run(30) }), page('two', [], { run: run(60.04) }), page('text', [])));
  assert.match(html, /90 seconds, 1\.5 minutes, on 2 CPU cores of A &lt;CPU&gt;/);
  assert.match(html, /30\.0/);
  assert.match(html, /60\.0/);
  assert.match(html, /torch 2/);
  assert.doesNotMatch(html, /text\.html/);
});

test('what several pages cite stands once, in order, with its pages', () => {
  const [b, a] = [
    { label: 'b', html: '<i>Bee</i>' },
    { label: 'a', html: 'Ant' },
  ];
  const html = register.bibliography!(
    { type: 'bibliography' },
    renderer(page('one', [], { references: [b!, a!] }), page('two', [], { references: [b!] })),
  );
  assert.ok(html.indexOf('Ant') < html.indexOf('Bee'));
  assert.equal(html.match(/Bee/g)!.length, 1);
  assert.match(html, /Bee<\/i> <small><a href="one\.html">one<\/a>, <a href="two\.html">two<\/a>/);
});
