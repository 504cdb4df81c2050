import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type OutputContext, renderCell, seconds } from '../src/outputs.ts';
import type { Cell, Output } from '../src/runs.ts';
import type { Problem } from '../src/tree.ts';

function render(
  outputs: Output[],
  cell: Partial<Cell> = {},
  context: Partial<OutputContext> = {},
): { html: string; problems: Problem[] } {
  const problems: Problem[] = [];
  let bytes = 0;
  const whole: Cell = {
    type: 'cell',
    code: 'x = 1',
    language: 'python',
    shown: 'show',
    input: 'show',
    output: 'show',
    run: { source: 'x = 1', tags: [], outputs, seconds: 0.04, line: 12 },
    ...cell,
  };
  const html = renderCell(whole, {
    file: 'lessons/a.md',
    meaning: new Map(),
    prefix: 'c1',
    problem: (p) => {
      problems.push(p);
    },
    asset: (_, extension) => `images/a.${extension}`,
    widgetBytes: (more) => (bytes += more),
    ...context,
  });
  return { html, problems };
}

const svg = '<?xml version="1.0"?><svg viewBox="0 0 432 200" width="6in"><defs><path id="p"/></defs><use href="#p"/></svg>';
const drawn = (told: Record<string, unknown>, source = svg): Output => ({
  output_type: 'display_data',
  data: { 'image/svg+xml': source },
  metadata: { 'image/svg+xml': told },
});

test('prints are one block with the seconds beside it; stderr is for Jupyter only', () => {
  const { html } = render([
    { output_type: 'stream', name: 'stdout', text: 'a\n' },
    { output_type: 'stream', name: 'stderr', text: 'warn' },
    { output_type: 'stream', name: 'stdout', text: ['b', '\u001b[31mc\u001b[0m\n'] },
  ]);
  assert.match(html, /<code>a\nbc<\/code><\/pre><small>0\.04\u2009s<\/small>/);
  assert.doesNotMatch(html, /warn/);
});

test('a figure is inlined with its words, its caption, its number and ids of its own', () => {
  const { html, problems } = render(
    [drawn({ alt: 'It falls "6 dB" a bit.', caption: 'The *slope* of `w` is [blue]{.exact}.' })],
    { input: 'remove' },
    { numbered: { word: 'Figure', number: '3', id: 'fig-x' } },
  );
  assert.deepEqual(problems, []);
  assert.match(
    html,
    /^<figure id="fig-x" class="beside"><svg class="fig" role="img" aria-label="It falls &quot;6 dB&quot; a bit\." viewBox="0 0 432 200">/,
  );
  assert.match(html, /<path id="c1-p"\/>.*href="#c1-p"/);
  assert.match(
    html,
    /<figcaption><b>Figure 3\.<\/b> The <em>slope<\/em> of <code>w<\/code> is <span class="exact">blue<\/span>\.<\/figcaption>/,
  );
});

test('a picture without words is a problem with its line and a remedy', () => {
  const { problems } = render([drawn({})]);
  assert.equal(problems.length, 1);
  assert.equal(`${problems[0]!.file}:${problems[0]!.line}`, 'lessons/a.md:12');
  assert.match(problems[0]!.what, /without alternative text/);
  assert.match(problems[0]!.remedy, /alt=/);
});

test('a widget is inlined untouched, and too large a one is a problem', () => {
  const small = '<figure class="explore"><figcaption>Drag.</figcaption></figure>';
  const { html, problems } = render(
    [{ output_type: 'display_data', data: { 'text/html': small, 'application/vnd.jupyter.widget-view+json': '{}' } }],
    { input: 'remove' },
  );
  assert.equal(html, small);
  assert.deepEqual(problems, []);
  const large = render([
    { output_type: 'display_data', data: { 'text/html': `<figure class="explore">${'x'.repeat(200_001)}</figure>` } },
  ]);
  assert.match(large.problems[0]!.what, /its widget is 200 kB, over the 200 kB/);
});

test('widgets of one page share a budget', () => {
  const widget: Output = {
    output_type: 'display_data',
    data: { 'text/html': `<figure class="explore">${'x'.repeat(160_000)}</figure>` },
  };
  const { problems } = render([widget, widget]);
  assert.equal(problems.length, 1);
  assert.match(problems[0]!.what, /the page's widgets pass 300 kB/);
});

test('a widget without a static half is a problem', () => {
  const { problems } = render([
    { output_type: 'display_data', data: { 'application/vnd.jupyter.widget-view+json': '{}', 'text/plain': 'IntSlider()' } },
  ]);
  assert.match(problems[0]!.what, /no static half/);
});

test('tags decide what is folded and what is gone', () => {
  const out: Output[] = [{ output_type: 'stream', name: 'stdout', text: 'hi' }];
  assert.equal(render(out, { shown: 'remove' }).html, '');
  assert.match(
    render(out, { input: 'hide' }).html,
    /<details class="source"><summary>Code<\/summary><div class="in">.*<\/details><div class="out">/s,
  );
  assert.doesNotMatch(render(out, { output: 'remove' }).html, /hi/);
  assert.match(render(out, { shown: 'hide' }).html, /^<details class="fold"><summary>Code and output<\/summary>/);
});

test('an error that is the point shows its last line, without the paths of this machine', () => {
  const { html } = render([{ output_type: 'error', ename: 'ZeroDivisionError', evalue: 'division by zero' }]);
  assert.match(html, /<code>ZeroDivisionError: division by zero<\/code>/);
});

test('a label on a cell that draws nothing is a problem', () => {
  assert.match(
    render([], {}, { numbered: { word: 'Figure', number: '1', id: 'fig-x' } }).problems[0]!.what,
    /shows nothing that could be numbered/,
  );
});

test('seconds are short', () => {
  assert.deepEqual([undefined, 0.001, 0.04, 2.62, 31.4].map(seconds), ['', '', '0.04\u2009s', '2.6\u2009s', '31\u2009s']);
});

test('source that a cell shows stands on a panel, highlighted', () => {
  const markdown = '````python\ndef f(x):\n    return x\n````';
  const { html } = render([
    { output_type: 'display_data', data: { 'text/plain': 'def f(x): …', 'text/markdown': markdown }, metadata: {} },
  ]);
  assert.match(html, /aria-label="Source"><code><span class="hljs-keyword">def<\/span> f\(x\):\n {4}<span/);
  assert.doesNotMatch(html, /````|…/);
});
