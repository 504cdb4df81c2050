// The list of sources: the page's own, if it wrote one under "Sources", completed from the bibliography for what it cites and does not list.
import type { Page } from './book.ts';
import { escape } from './html.ts';
import type { Renderer } from './renderer.ts';
import { type Node, text, walk } from './tree.ts';

const isSources = (node: Node): boolean => node.type === 'heading' && /^(sources|references)$/i.test(text(node).trim());

const labelOf = (item: Node): string | undefined => [...walk(item)].find((n) => n.type === 'cite')?.label;

const fromBibliography = (html: string): string =>
  html.replace(/ target="_blank"/g, '').replace(/rel="noreferrer"/g, 'rel="noopener"');

export interface Sources {
  before: Node[];
  html: string;
  after: Node[];
}

/** Splits the page at its sources and writes them; without any citation or heading there is none. */
export function sources(page: Page, nodes: Node[], r: Renderer): Sources {
  const at = nodes.findIndex(isSources);
  const cited = new Set(
    nodes
      .flatMap((n) => [...walk(n)])
      .filter((n) => n.type === 'cite')
      .map((n) => n.label),
  );
  if (at < 0 && !cited.size) return { before: nodes, html: '', after: [] };
  const end = nodes.findIndex((n, i) => i > at && n.type === 'heading' && Number(n.depth) <= 2);
  const section = at < 0 ? [] : nodes.slice(at + 1, end < 0 ? undefined : end);
  const list = section.find((n) => n.type === 'list');
  for (const node of list ? walk(list) : []) if (node.type === 'cite') node.inSources = true;
  const written = (list?.children ?? []).map((item) => {
    const label = labelOf(item);
    const inner = (item.children ?? []).flatMap((c) => (c.type === 'paragraph' ? (c.children ?? []) : [c]));
    return { label, html: `<li${label ? ` id="source-${escape(label)}"` : ''}>${r.all(inner)}</li>` };
  });
  const listed = new Set(written.map((w) => w.label));
  const rest = page.references
    .filter((c) => cited.has(c.label) && !listed.has(c.label))
    .map((c) => `<li id="source-${escape(c.label)}">${fromBibliography(c.html)}</li>`);
  const heading = at < 0 ? '<h2 id="sources">Sources</h2>' : r.one(nodes[at]!);
  const others = section.filter((n) => n !== list);
  return {
    before: at < 0 ? nodes : nodes.slice(0, at),
    html: `${heading}${r.all(others)}<ol class="sources">${written.map((w) => w.html).join('')}${rest.join('')}</ol>`,
    after: at < 0 || end < 0 ? [] : nodes.slice(end),
  };
}
