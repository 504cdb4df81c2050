import assert from 'node:assert/strict';
import { test } from 'node:test';
import { paintCode, paintTex, readMeaning } from '../src/meaning.ts';

const page = readMeaning({ meaning: { w: 'exact', q: 'grid', scale: 'grid', '\\Delta': 'grid', '\\hat w': 'grid', e: 'error' } });

test('names are painted in code, not in strings, comments or attributes', () => {
  const html = paintCode('w = q * scale + x.w <span class="hljs-string">"w"</span> <span class="hljs-comment"># w</span>', page);
  assert.equal(
    html,
    '<span class="exact">w</span> = <span class="grid">q</span> * <span class="grid">scale</span> + x.w <span class="hljs-string">"w"</span> <span class="hljs-comment"># w</span>',
  );
});

test('what an f-string evaluates is code again', () => {
  const html = paintCode('<span class="hljs-string">f"w <span class="hljs-subst">{w}</span>"</span>', page);
  assert.equal(html, '<span class="hljs-string">f"w <span class="hljs-subst">{<span class="exact">w</span>}</span>"</span>');
});

test('part of a longer name is not the name', () => {
  assert.equal(paintCode('w_max + rescale + scale_', page), 'w_max + rescale + scale_');
});

test('symbols are wrapped in equations, the longest entry first', () => {
  assert.equal(
    paintTex('\\hat w = \\Delta q', page),
    '\\htmlClass{grid}{\\hat w} = \\htmlClass{grid}{\\Delta} \\htmlClass{grid}{q}',
  );
  assert.equal(paintTex('\\hat{w} - w', page), '\\htmlClass{grid}{\\hat{w}} - \\htmlClass{exact}{w}');
});

test('words inside \\text and the names of operators stay as they are', () => {
  assert.equal(
    paintTex('\\operatorname{we}(x) \\text{ where } \\begin{aligned}e\\end{aligned}', page),
    '\\operatorname{we}(x) \\text{ where } \\begin{aligned}\\htmlClass{error}{e}\\end{aligned}',
  );
});

test('an unknown meaning is refused with the three that exist', () => {
  assert.throws(() => readMeaning({ meaning: { w: 'blue' } }), /meaning of w is "blue": write one of exact, grid, error/);
});
