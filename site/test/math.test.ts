import assert from 'node:assert/strict';
import { test } from 'node:test';
import { katexCss } from '../src/bundle.ts';
import { katexFonts, renderMath, symbols } from '../src/math.ts';
import { readMeaning } from '../src/meaning.ts';

const page = readMeaning({ meaning: { w: 'exact' } });

test('a symbol of the dictionary has its class in the HTML, and the equation is also MathML', () => {
  const html = renderMath('w^2', false, page, {});
  assert.match(html, /class="[^"]*exact/);
  assert.match(html, /<math/);
  assert.doesNotMatch(html, /annotation/);
});

test('macros of the project work, bad TeX throws', () => {
  assert.match(renderMath('\\R', false, page, { '\\R': 'R' }), /katex/);
  assert.throws(() => renderMath('\\nosuch', false, page, {}), /Undefined control sequence/);
});

test('what a search can find of an equation', () => {
  const found = symbols('\\hat w = \\Delta \\cdot q_{\\lambda}, \\R \\le 3', { '\\R': '\\mathbb{R}' }).split(' ');
  for (const sign of ['w', 'Δ', 'Delta', 'q', 'λ', 'lambda', 'R', '3', '≤']) assert.ok(found.includes(sign), sign);
  assert.equal(symbols('\\lambda \\lambda', {}), 'λ lambda');
  assert.doesNotMatch(symbols('a < b & c', {}), /[<>]|math/);
});

test('only the fonts in use are shipped', () => {
  assert.deepEqual(katexFonts('no equation'), []);
  assert.deepEqual(katexFonts(renderMath('w_1', false, page, {})), ['Main-Regular', 'Math-Italic']);
  assert.ok(katexFonts(renderMath('\\sum_i w_i', true, page, {})).includes('Size2-Regular'));
  assert.ok(katexFonts(renderMath('\\mathbb E', true, page, {})).includes('AMS-Regular'));
});

test('the style sheet loses the fonts that are not shipped', () => {
  const css =
    '@font-face{font-family:A;src:url(fonts/KaTeX_AMS-Regular.woff2) format("woff2"),url(fonts/KaTeX_AMS-Regular.ttf)}@font-face{font-family:M;src:url(fonts/KaTeX_Main-Regular.woff2) format("woff2"),url(x.ttf)}.katex{}';
  assert.equal(
    katexCss(css, ['Main-Regular']),
    '@font-face{font-family:M;src:url(fonts/KaTeX_Main-Regular.woff2) format("woff2")}.katex{}',
  );
});
