import assert from 'node:assert/strict';
import { test } from 'node:test';
import { highlight, panel } from '../src/code.ts';
import { readMeaning } from '../src/meaning.ts';

const page = readMeaning({ meaning: { scale: 'grid' } });

test('a line that ends in "# wrong:" is marked, its comment is not', () => {
  const html = highlight('    scale = 1 / 0   # wrong: may be 0\nx = 2', 'python', page);
  assert.match(
    html,
    /^ {4}<mark class="wrong"><span class="grid">scale<\/span> = 1 \/ 0<\/mark> {3}<span class="hljs-comment"># wrong: may be 0<\/span>\nx = 2$/,
  );
});

test('only the spans that the style sheet knows remain, and they balance', () => {
  const html = highlight('def f(a, b=1):\n    """Doc."""\n    return print(f"{a}")', 'ipython3', page);
  assert.doesNotMatch(html, /hljs-(title|params|number|built_in|literal)/);
  assert.equal(html.match(/<span/g)?.length, html.match(/<\/span>/g)?.length);
  assert.match(html, /hljs-keyword/);
});

test('an unknown language is shown as it is, escaped', () => {
  assert.equal(highlight('a < b', 'nosuch', page), 'a &lt; b');
});

test('a panel can be reached by keyboard and has a name', () => {
  assert.match(
    panel('x', 'Command'),
    /<pre tabindex="0" role="group" aria-label="Command"><code>x<\/code><\/pre><button class="copy"/,
  );
});
