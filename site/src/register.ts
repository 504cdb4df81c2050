// What only the whole book knows, written where a page asks for it by a comment: <!-- status -->, how long each page ran, on what;
// <!-- claims -->, every refuted claim with its run; <!-- bibliography -->, everything that a page cites.
import type { Page, Reference } from './book.ts';
import { escape } from './html.ts';
import { body, titleOf } from './postures.ts';
import type { Handlers, Renderer } from './renderer.ts';
import { type Entry, table } from './tables.ts';
import { minutesToRead } from './title.ts';
import { type Node, text } from './tree.ts';

const cell = (html: string, words = html): Entry => ({ html, words, header: false });
const head = (words: string): Entry => ({ html: escape(words), words, header: true });
const inOrder = (pages: Page[]): string => pages.map((p) => `<a href="${p.href}">${escape(nameOf(p))}</a>`).join(', ');
const nameOf = (page: Page): string => (page.part ? `Part ${page.part.number}` : page.title);

const seconds = (page: Page): number => page.run?.seconds ?? 0;

function status(_: Node, r: Renderer): string {
  const ran = r.book.pages.filter((p) => p.run?.runs.length);
  if (!ran.length) return '';
  const rows = ran.map((p) => {
    const asserted = p.run!.runs.filter((run) => /^\s*(assert|check\w*\()/m.test(run.source)).length;
    return [
      cell(`<a href="${p.href}">${p.part ? `${p.part.number}. ` : ''}${escape(p.title)}</a>`, p.title),
      cell(String(minutesToRead(p))),
      cell(String(p.run!.runs.length)),
      cell(String(asserted)),
      cell(seconds(p).toFixed(1)),
    ];
  });
  const total = ran.reduce((sum, p) => sum + seconds(p), 0);
  const { machine, cpu, versions } = ran[0]!.run!;
  const named = Object.entries(versions).map(([name, version]) => `${escape(name)} ${escape(version)}`);
  return `${table({
    head: [['page', 'minutes to read', 'cells', 'with assertions', 'seconds to run'].map(head)],
    body: rows,
    bars: true,
    wide: false,
    caption: `All pages: ${Math.round(total)} seconds, ${(total / 60).toFixed(1)} minutes, on ${escape(machine.split(',').pop()?.trim())}${cpu ? ` of ${escape(cpu)}` : ''}.`,
    name: 'Run times',
  })}${named.length ? `<p>${named.join(' · ')}</p>` : ''}`;
}

/** The words of some nodes on another page: code and symbols stay, links do not. */
const bare = (nodes: Node[] | undefined, r: Renderer): string =>
  (nodes ?? [])
    .map((n) => (n.type === 'inlineCode' || n.type === 'inlineMath' || n.type === 'text' ? r.one(n) : bare(n.children, r)))
    .join('');

/** Up to the end of the first sentence, or to a semicolon. */
export function sentence(nodes: Node[]): Node[] {
  const out: Node[] = [];
  for (const node of nodes) {
    const words = node.type === 'text' ? node.value! : '';
    const end = /[.;](?=\s|$)/.exec(words);
    if (end) return [...out, { type: 'text', value: `${words.slice(0, end.index)}.` }];
    out.push(node);
  }
  return out;
}

export interface Refuted {
  page: Page;
  id: string;
  claim: Node[];
  truth: Node[];
}

const paragraph = (nodes: Node[] | undefined): Node[] => (nodes ?? []).find((n) => n.type === 'paragraph')?.children ?? [];

/** The claims of a page. What is true stands in the fold of the claim, or after it under a heading of its own. */
export function refuted(page: Page): Refuted[] {
  const found: Refuted[] = [];
  for (const node of page.nodes.filter((n) => n.type === 'seen')) {
    const last = found.at(-1);
    const title = titleOf(node);
    if (last && title && /^what is true/i.test(text(title))) last.truth = paragraph(body(node));
    else found.push({ page, id: node.html_id!, claim: paragraph(body(node)), truth: paragraph(node.fold) });
  }
  return found;
}

function claims(_: Node, r: Renderer): string {
  const items = r.book.pages.flatMap(refuted).map(({ page, id, claim, truth }) => {
    const true_ = bare(sentence(truth), r);
    return `<dt>${bare(claim, r)}</dt><dd>${true_}${true_ ? ' ' : ''}<a href="${page.href}#${escape(id)}">${escape(nameOf(page))}: the run</a></dd>`;
  });
  return items.length ? `<dl class="claims">${items.join('\n')}</dl>` : '';
}

const byName = (a: Reference, b: Reference): number => text_(a).localeCompare(text_(b), 'en');
const text_ = (reference: Reference): string => reference.html.replace(/<[^>]*>/g, '').trim();

function bibliography(_: Node, r: Renderer): string {
  const cited = new Map<string, { reference: Reference; pages: Page[] }>();
  for (const page of r.book.pages)
    for (const reference of page.references) {
      const known = cited.get(reference.label);
      if (known) known.pages.push(page);
      else cited.set(reference.label, { reference, pages: [page] });
    }
  const items = [...cited.values()]
    .sort((a, b) => byName(a.reference, b.reference))
    .map(({ reference, pages }) => {
      const words = reference.html.replace(/ target="_blank"/g, '').replace(/rel="noreferrer"/g, 'rel="noopener"');
      return `<li id="cited-${escape(reference.label)}">${words} <small>${inOrder(pages)}</small></li>`;
    });
  return items.length ? `<ul class="bibliography">${items.join('\n')}</ul>` : '';
}

export const register: Handlers = { status, claims, bibliography };
