// Source code: highlighting, the colours of the page's dictionary, and the wavy line under what is wrong.
import hljs from 'highlight.js/lib/core';
import bash from 'highlight.js/lib/languages/bash';
import cpp from 'highlight.js/lib/languages/cpp';
import json from 'highlight.js/lib/languages/json';
import python from 'highlight.js/lib/languages/python';
import yaml from 'highlight.js/lib/languages/yaml';
import { attributes, escape } from './html.ts';
import { type Meaning, paintCode } from './meaning.ts';

for (const [name, language] of Object.entries({ bash, cpp, json, python, yaml })) hljs.registerLanguage(name, language);

const ALIAS: Record<string, string> = {
  ipython: 'python',
  ipython3: 'python',
  py: 'python',
  sh: 'bash',
  shell: 'bash',
  console: 'bash',
  c: 'cpp',
  cuda: 'cpp',
  yml: 'yaml',
};
const STYLED = new Set(['comment', 'keyword', 'string', 'subst', 'meta']);

/** Drops the spans that the style sheet does not use: a third of the bytes of a page's code. */
function slim(html: string): string {
  const kept: boolean[] = [];
  return html.replace(/<span class="hljs-([\w-]+)[^"]*">|<\/span>/g, (tag, name?: string) => {
    if (name === undefined) return kept.pop() ? tag : '';
    kept.push(STYLED.has(name));
    return STYLED.has(name) ? `<span class="hljs-${name}">` : '';
  });
}

/** A line that ends in `# wrong: why` is marked, its comment not. */
const markWrong = (html: string): string =>
  html.replace(/^(\s*)(\S.*?)(\s*)(<span class="hljs-comment"># wrong:.*)$/gm, '$1<mark class="wrong">$2</mark>$3$4');

export function highlight(source: string, language: string | undefined, meaning: Meaning): string {
  const name = ALIAS[language ?? ''] ?? language ?? '';
  if (!hljs.getLanguage(name)) return escape(source);
  const html = slim(hljs.highlight(source, { language: name }).value);
  return name === 'python' ? markWrong(paintCode(html, meaning)) : html;
}

/** The panel that code stands on. `label` is what a screen reader calls it. */
export const panel = (codeHtml: string, label = 'Code', id?: string): string =>
  `<div class="in"${attributes({ id })}><pre tabindex="0" role="group" aria-label="${label}"><code>${codeHtml}</code></pre><button class="copy" type="button">Copy</button></div>`;
