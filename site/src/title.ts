// The head of a page: ruler, part, title, lede, what you will do, learn and need, how long it takes, where to get it.
import type { Book, Page } from './book.ts';
import { coverLabel } from './cover.ts';
import { drawing } from './drawings.ts';
import { escape } from './html.ts';
import type { Renderer } from './renderer.ts';
import { launches } from './launch.ts';
import { isCell } from './runs.ts';
import { type Node, text, walk } from './tree.ts';

const WORDS_A_MINUTE = 170; // slower than a novel: there is code

const isAims = (node: Node): boolean =>
  node.type === 'list' &&
  Boolean(node.children?.length) &&
  node.children!.every((item) => {
    const first = item.children?.[0]?.type === 'paragraph' ? item.children[0]!.children?.[0] : item.children?.[0];
    return first?.type === 'strong';
  });

const isLede = (node: Node): boolean =>
  node.type === 'paragraph' && node.children?.length === 1 && node.children[0]!.type === 'emphasis';

export interface Split {
  lede?: Node;
  aims?: Node;
  label: string;
  rest: Node[];
}

/** Takes the title block out of what stands before the first heading. */
export function split(nodes: Node[]): Split {
  const end = nodes.findIndex((n) => n.type === 'heading');
  const before = end < 0 ? nodes : nodes.slice(0, end);
  const lede = before.find(isLede);
  const aims = before.find(isAims);
  return { lede, aims, label: coverLabel(before), rest: nodes.filter((n) => n !== lede && n !== aims && n.type !== 'label') };
}

const aimsHtml = (list: Node, r: Renderer): string => {
  const rows = (list.children ?? []).map((item) => {
    const [strong, ...words] = (item.children ?? []).flatMap((c) => (c.type === 'paragraph' ? (c.children ?? []) : [c]));
    return `<div><dt>${escape(text(strong!))}</dt><dd>${r.all(words).replace(/^[\s:.]+/, '')}</dd></div>`;
  });
  return `<dl class="aims">${rows.join('')}</dl>`;
};

export function minutesToRead(page: Page): number {
  if (page.minutes) return page.minutes;
  const words = page.nodes
    .flatMap((n) => [...walk(n)])
    .map((n) => (isCell(n) ? n.code : (n.value ?? '')))
    .join(' ')
    .split(/\s+/).length;
  return Math.max(1, Math.round(words / WORDS_A_MINUTE / 5) * 5);
}

function facts(page: Page): string {
  const run =
    page.run && page.run.seconds >= 0.5
      ? `<span>${Math.round(page.run.seconds)} s to run on ${escape(page.run.machine.split(',').pop()?.trim())}</span>`
      : '';
  const live = page.file;
  return `<div class="facts"><span>${minutesToRead(page)} min to read</span>${run}
<a href="${page.name}.ipynb" download>Download .ipynb</a>
${launches(page)}
<details><summary>Open in Jupyter</summary><p>In the book’s folder run <code>make lab</code>, then open <a href="http://localhost:8888/lab/tree/${live}">${live}</a>: every widget and cell on this page is live there.</p></details></div>`;
}

export function titleHtml(book: Book, page: Page, { lede, aims, label }: Split, r: Renderer): string {
  const words = lede ? `<p class="lede">${r.all(lede.children![0]!.children)}</p>` : '';
  if (page.slug === 'index') {
    const [first, last] = book.title === page.title ? balanced(page.title) : [page.title];
    return `<header class="points">${label ? `<p class="label">${escape(label)}</p>` : ''}<h1>${escape(first)}${last ? `<br>${escape(last)}` : ''}</h1>${words}</header>`;
  }
  const part = page.part ? `${drawing(page.part.number)}<p class="label">Part ${page.part.number} of ${book.parts.length}</p>` : '';
  return `<header class="title points">${part}<h1>${escape(page.title)}</h1>${words}${aims ? aimsHtml(aims, r) : ''}${facts(page)}</header>`;
}

/** A title in two lines: the first break after a third of it. */
export function balanced(title: string): [string, string?] {
  const at = title.indexOf(' ', Math.floor(title.length / 3));
  return at < 0 ? [title] : [title.slice(0, at), title.slice(at + 1)];
}
