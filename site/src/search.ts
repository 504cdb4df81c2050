// What the search looks through: one entry per section, with its words, its code and where it stands.
import type { Book, Page } from './book.ts';
import { type Macros, symbols } from './math.ts';
import { isCell } from './runs.ts';
import { type Node, text } from './tree.ts';

export interface Entry {
  title: string;
  where: string;
  href: string;
  text: string;
  code: string;
  /** Of equations: their signs and the names of these. */
  symbols: string;
}

const SILENT = new Set(['comment', 'mystTarget', 'captionNumber']);

function words(node: Node): string {
  if (SILENT.has(node.type) || isCell(node)) return '';
  if (isMath(node)) return '';
  const below = [...(node.children ?? []), ...(node.fold ?? [])].map(words).join(BLOCK.has(node.type) ? ' ' : '');
  return (node.value ?? '') + below;
}
const BLOCK = new Set([
  'root',
  'block',
  'list',
  'listItem',
  'table',
  'tableRow',
  'tableCell',
  'container',
  'admonition',
  'ask',
  'seen',
  'exercise',
  'details',
  'definitionList',
  'ways',
  'way',
  'tabSet',
  'tabItem',
  'partsMap',
  'caption',
]);

const codeOf = (node: Node): string =>
  isCell(node)
    ? node.shown === 'remove' || node.input === 'remove'
      ? ''
      : node.code
    : [...(node.children ?? []), ...(node.fold ?? [])].map(codeOf).filter(Boolean).join('\n');

/** Captions that the run wrote count as words of the page. */
const captions = (node: Node): string =>
  isCell(node)
    ? (node.run?.outputs ?? [])
        .flatMap((o) => Object.values(o.metadata ?? {}))
        .map((m) => String(m.caption ?? ''))
        .join(' ')
    : [...(node.children ?? []), ...(node.fold ?? [])].map(captions).filter(Boolean).join(' ');

const isMath = (node: Node): boolean => node.type === 'inlineMath' || node.type === 'math';

const equations = (node: Node, macros: Macros): string =>
  isMath(node)
    ? symbols(node.value ?? '', macros)
    : isCell(node)
      ? ''
      : [...(node.children ?? []), ...(node.fold ?? [])]
          .map((below) => equations(below, macros))
          .filter(Boolean)
          .join(' ');

const tidy = (s: string): string => s.replace(/\s+/g, ' ').trim();

function entriesOf(page: Page, book: Book): Entry[] {
  const name = page.slug === 'index' ? 'Start here' : page.title;
  const where = page.part ? `Part ${page.part.number} · ${name}` : name;
  const entries: Entry[] = [
    { title: name, where: page.part ? `Part ${page.part.number}` : book.title, href: page.href, text: '', code: '', symbols: '' },
  ];
  for (const node of page.nodes) {
    if (node.type === 'heading' && Number(node.depth) <= 3) {
      entries.push({ title: text(node), where, href: `${page.href}#${node.html_id ?? node.identifier}`, text: '', code: '', symbols: '' });
      continue;
    }
    const entry = entries.at(-1)!;
    entry.text = tidy(`${entry.text} ${words(node)} ${captions(node)}`);
    entry.code = `${entry.code}\n${codeOf(node)}`.trim();
    const signs = tidy(`${entry.symbols} ${equations(node, page.macros)}`);
    entry.symbols = [...new Set(signs.split(' '))].join(' ');
  }
  return entries;
}

export const searchEntries = (book: Book): Entry[] => book.pages.flatMap((page) => entriesOf(page, book));
