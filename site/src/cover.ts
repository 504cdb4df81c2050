// The pieces of the first page: the way in, the map of the parts, the ways to use the book.
import { drawing } from './drawings.ts';
import { escape } from './html.ts';
import type { Handlers, Renderer } from './renderer.ts';
import { find, type Node, walk } from './tree.ts';

/** The links of a paragraph as buttons; what stands between them is for Jupyter. */
const go = (node: Node, r: Renderer): string => {
  const links = [...walk(node)].filter((n) => n.type === 'link' || n.type === 'crossReference');
  return `<p class="go">${links.map((n) => r.one(n)).join('')}</p>`;
};

const partsMap = (_: Node, r: Renderer): string => {
  const items = r.book.parts.map(({ number, title, question, page }) => {
    const state = page ? '<small class="was-read"></small>' : '<small class="planned">not yet written</small>';
    const inner = `${drawing(number)}<div><b>${number}\u2002${escape(title)}</b>${state}<span>${r.all(question).trim()}</span></div>`;
    return `<li data-part="${number}">${page ? `<a href="${page.href}">${inner}</a>` : `<div class="row">${inner}</div>`}</li>`;
  });
  const rows = Math.ceil(items.length / 2);
  return `<ol class="map wide" style="--rows:${rows}">${items.join('')}</ol>`;
};

const ways = (node: Node, r: Renderer): string =>
  `<div class="ways wide">${(node.children ?? []).map((way) => `<section>${r.all(way.children)}</section>`).join('')}</div>`;

export const cover: Handlers = { go, partsMap, ways, label: () => '' };

/** The words above the title of the first page: <!-- label: … -->. */
export const coverLabel = (nodes: Node[]): string =>
  find({ type: 'root', children: nodes }, (n) => n.type === 'label')?.value ?? '';
