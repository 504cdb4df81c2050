// From a page's tree to its HTML: one function per kind of node. What a node means for the look stands in style/, what belongs together
// in postures.ts. Text is here; cells are in outputs.ts, tables in tables.ts, questions in asked.ts, the first page's pieces in cover.ts.
import type { Book, Page } from './book.ts';
import { asked } from './asked.ts';
import { cover } from './cover.ts';
import { highlight, panel } from './code.ts';
import { figure, type Numbered } from './figures.ts';
import { attributes, element, escape } from './html.ts';
import { renderMath } from './math.ts';
import { type OutputContext, renderCell } from './outputs.ts';
import { body, titleOf } from './postures.ts';
import type { Assets, Handlers, Renderer } from './renderer.ts';
import { isCell } from './runs.ts';
import { type Entry, table } from './tables.ts';
import { register } from './register.ts';
import { checkReference } from './targets.ts';
import { hasClass, line, type Node, type Problem, text } from './tree.ts';

const tag =
  (name: string, extra: Record<string, string> = {}) =>
  (node: Node, r: Renderer): string =>
    element(name, { id: node.html_id, class: node.class, ...extra }, r.all(node.children));

/** MyST turns $-7$ into the plain text "-7": a number below zero gets its minus back. */
export const trueMinus = (words: string): string => words.replace(/(?<=^|[\s(\[])-(?=\d)/g, '\u2212');

const isExternal = (url: string): boolean => /^(https?:|mailto:)/.test(url);

/** The address of another page of the book, seen from any page: all lie in one folder. */
export function hrefOf(url: string, book: Book): string | undefined {
  const [, slug = '', hash = ''] = /^\/([^#]*)(#.*)?$/.exec(url) ?? [];
  const page = book.pages.find((p) => p.slug === slug || (slug === '' && p.slug === 'index'));
  return page && url.startsWith('/') ? page.href + hash : undefined;
}

function link(node: Node, r: Renderer): string {
  const url = node.url ?? '';
  if (isExternal(url)) return element('a', { href: url, rel: 'noopener' }, r.all(node.children) || escape(url));
  const href = url.startsWith('#') ? url : hrefOf(url, r.book);
  if (!href)
    r.problem({
      file: r.page.file,
      line: line(node),
      what: `the link to "${url}" leads nowhere`,
      remedy: 'link to a page that is in the contents of myst.yml, by its file name',
    });
  return element('a', { href: href ?? '#' }, r.all(node.children) || escape(url));
}

function crossReference(node: Node, r: Renderer): string {
  const problem = checkReference(node, r.book.targets, r.page.file);
  if (problem) r.problem(problem);
  const target = r.book.targets.get(node.identifier ?? '');
  const elsewhere = target && target.page !== r.page.name ? (r.book.pages.find((p) => p.name === target.page)?.href ?? '') : '';
  return element('a', { href: `${elsewhere}#${node.html_id ?? node.identifier}` }, r.all(node.children));
}

/** In the text a citation leads to the list of sources; in that list it leads to the source itself. */
const cite = (node: Node, r: Renderer): string =>
  node.inSources
    ? element(
        'a',
        { href: node.url ?? r.page.references.find((c) => c.label === node.label)?.url ?? '#', rel: 'noopener' },
        r.all(node.children),
      )
    : element('a', { class: 'cite', href: `#source-${node.label}` }, r.all(node.children));

/** A note is a span inside its paragraph, so that it can stand beside its line. */
function note(node: Node, r: Renderer): string {
  const id = node.identifier ?? '';
  const definition = r.page.notes.get(id);
  const number = escape(node.enumerator ?? id);
  const words = (definition?.children ?? []).map((c) => r.all(c.children)).join(' ');
  if (!words)
    r.problem({
      file: r.page.file,
      line: line(node),
      what: `the note "${id}" has no text`,
      remedy: `write [^${id}]: … in the same stretch of Markdown`,
    });
  return (
    `<a class="ref" href="#note-${escape(id)}" role="doc-noteref" aria-label="Note ${number}">${number}</a>` +
    `<span class="note" id="note-${escape(id)}" role="note"><b>${number}</b>${words}</span>`
  );
}

function math(node: Node, r: Renderer, display: boolean): string {
  try {
    return renderMath(node.value ?? '', display, r.page.meaning, r.page.macros);
  } catch (error) {
    r.problem({
      file: r.page.file,
      line: line(node),
      what: `an equation does not parse: ${(error as Error).message.replace(/^KaTeX parse error: /, '')}`,
      remedy: 'correct the TeX, or define the macro under project.math in myst.yml',
    });
    return element('code', {}, escape(node.value));
  }
}

/** What is too wide scrolls; its number stays in sight. */
function equation(node: Node, r: Renderer): string {
  const name = `Equation${node.enumerator ? ` ${node.enumerator}` : ''}`;
  const scrolls = `<div tabindex="0" role="group" aria-label="${escape(name)}">${math(node, r, true)}</div>`;
  const number = node.enumerator ? `<a href="#${escape(node.html_id)}">(${escape(node.enumerator)})</a>` : '';
  return `<div class="eq"${attributes({ id: node.html_id })}>${scrolls}${number}</div>`;
}

function image(node: Node, r: Renderer): string {
  if (!String(node.alt ?? '').trim())
    r.problem({
      file: r.page.file,
      line: line(node),
      what: `the image "${node.urlSource ?? node.url}" has no alternative text`,
      remedy: 'write ![what it shows](file), or :alt: in the figure',
    });
  return `<img${attributes({ src: `images/${String(node.url).replace(/^.*\//, '')}`, alt: String(node.alt ?? ''), width: node.width as string })} loading="lazy">`;
}

const entry = (cell: Node, r: Renderer): Entry => ({
  html: r.all(cell.children),
  words: text(cell).trim(),
  header: Boolean(cell.header),
  role: cell.children?.length === 1 && cell.children[0]!.type === 'span' ? cell.children[0]!.class : undefined,
  off: cell.children?.length === 1 && cell.children[0]!.type === 'emphasis',
  span: cell.colspan as number | undefined,
  rows: cell.rowspan as number | undefined,
});

const caption = (container: Node, r: Renderer): string =>
  (container.children ?? [])
    .filter((c) => c.type === 'caption')
    .map((c) => r.all(c.children?.flatMap((p) => p.children ?? []).filter((n) => n.type !== 'captionNumber')))
    .join(' ');

function tableOf(node: Node, r: Renderer, container?: Node): string {
  const rows = node.children ?? [];
  const isHead = (row: Node): boolean => Boolean(row.children?.every((c) => c.header));
  const outer = container ?? node;
  const entries = (row: Node): Entry[] => (row.children ?? []).map((c) => entry(c, r));
  return table({
    head: rows.filter(isHead).map(entries),
    body: rows.filter((row) => !isHead(row)).map(entries),
    bars: hasClass(outer, 'bars'),
    wide: hasClass(outer, 'wide'),
    caption: container ? caption(container, r) : '',
    numbered: r.numbered(outer),
    name: 'Table',
  });
}

function container(node: Node, r: Renderer): string {
  const inner = node.children?.find((c) => c.type === 'table');
  if (inner) return tableOf(inner, r, node);
  return figure({
    picture: r.all((node.children ?? []).filter((c) => c.type !== 'caption' && c.type !== 'legend')),
    caption: caption(node, r),
    wide: hasClass(node, 'wide'),
    numbered: r.numbered(node),
  });
}

function tabs(node: Node, r: Renderer): string {
  const items = (node.children ?? []).filter((c) => c.type === 'tabItem');
  const name = `tabs-${r.page.name}-${(r.page.nodes as unknown[]).indexOf(node)}`;
  const choices = items
    .map(
      (item, i) =>
        `<label><input type="radio" name="${name}" value="${escape(item.title)}"${i ? '' : ' checked'}>${escape(item.title)}</label>`,
    )
    .join('');
  const panels = items
    .map((item) => `<div class="tab"><p class="label">${escape(item.title)}</p>${r.all(item.children)}</div>`)
    .join('');
  return `<div class="tabs"><fieldset class="segments"><legend class="vh">Choose one</legend>${choices}</fieldset>${panels}</div>`;
}

function admonition(node: Node, r: Renderer): string {
  const title = titleOf(node);
  const words = title ? r.all(title.children) : escape(node.kind ?? 'Note');
  if (hasClass(node, 'dropdown')) return `<details class="fold"><summary>${words}</summary>${r.all(body(node))}</details>`;
  return `<div class="admonition" role="note"${attributes({ id: node.html_id })}><p class="label">${words}</p>${r.all(body(node))}</div>`;
}

const list = (node: Node, r: Renderer): string =>
  element(
    node.ordered ? 'ol' : 'ul',
    { start: node.ordered && node.start !== 1 ? (node.start as number) : undefined, class: node.class },
    r.all(node.children),
  );

/** A list item of one paragraph needs no paragraph. */
const listItem = (node: Node, r: Renderer): string => {
  const [first, ...more] = node.children ?? [];
  const inner = first?.type === 'paragraph' ? r.all(first.children) + r.all(more) : r.all(node.children);
  return element('li', { id: node.html_id }, inner);
};

const inlineCode = (node: Node, r: Renderer): string =>
  element('code', { class: r.page.meaning.get(node.value ?? '') }, escape(node.value));

const TEXT: Handlers = {
  root: (n, r) => r.all(n.children),
  block: (n, r) => (n.visibility === 'remove' ? '' : r.all(n.children)),
  text: (n) => escape(trueMinus(n.value ?? '')),
  paragraph: tag('p'),
  heading: (n, r) => element(`h${Math.min(6, Math.max(2, Number(n.depth)))}`, { id: n.html_id ?? n.identifier }, r.all(n.children)),
  emphasis: tag('em'),
  strong: tag('strong'),
  delete: tag('del'),
  underline: tag('u'),
  subscript: tag('sub'),
  superscript: tag('sup'),
  span: tag('span'),
  div: tag('div'),
  blockquote: tag('blockquote'),
  keyboard: tag('kbd'),
  break: () => '<br>',
  thematicBreak: () => '<hr>',
  comment: () => '',
  mystTarget: () => '',
  footnoteDefinition: () => '',
  abbreviation: (n, r) => element('abbr', { title: n.title as string }, r.all(n.children)),
  inlineCode,
  link,
  linkBlock: link,
  crossReference,
  cite,
  footnoteReference: note,
  citeGroup: (n, r) => (n.kind === 'parenthetical' ? `(${(n.children ?? []).map((c) => r.one(c)).join('; ')})` : r.all(n.children)),
  inlineMath: (n, r) => math(n, r, false),
  math: equation,
  image,
  list,
  listItem,
  definitionList: tag('dl'),
  definitionTerm: tag('dt'),
  definitionDescription: tag('dd'),
  glossary: (n, r) => element('div', { class: 'glossary' }, r.all(n.children)),
  code: (n, r) =>
    `<div class="cell">${panel(highlight(n.value ?? '', n.lang as string, r.page.meaning), n.lang === 'bash' ? 'Command' : 'Code', n.html_id)}</div>`,
  table: (n, r) => tableOf(n, r),
  container,
  tabSet: tabs,
  admonition,
  details: (n, r) => `<details class="fold"><summary>${r.all(titleOf(n)?.children)}</summary>${r.all(body(n))}</details>`,
  aside: (n, r) => element('div', { class: 'note aside', role: 'note' }, r.all(n.children)),
};

const HANDLERS: Handlers = { ...TEXT, ...asked, ...cover, ...register };

export function makeRenderer(book: Book, page: Page, assets: Assets): Renderer {
  let bytes = 0;
  let cells = 0;
  const problem = (p: Problem): void => {
    book.problems.push(p);
  };
  const numbered = (node: Node): Numbered | undefined => {
    const target = node.identifier ? book.targets.get(node.identifier) : undefined;
    return target?.word && target.page === page.name && target.number
      ? { word: target.word, number: target.number, id: node.html_id ?? node.identifier! }
      : undefined;
  };
  const renderer: Renderer = {
    book,
    page,
    problem,
    numbered,
    all: (nodes) => (nodes ?? []).map((n) => renderer.one(n)).join(''),
    one(node) {
      if (isCell(node)) {
        const prefix = `c${++cells}`;
        const context: OutputContext = {
          file: page.file,
          meaning: page.meaning,
          numbered: numbered(node),
          prefix,
          problem,
          asset: (base64, extension) => assets.store(`${page.name}-${prefix}.${extension}`, base64),
          widgetBytes: (more) => (bytes += more),
        };
        return renderCell(node, context);
      }
      const handler = HANDLERS[node.type];
      if (handler) return handler(node, renderer);
      problem({
        file: page.file,
        line: line(node),
        what: `the book has no form for "${node.type}"`,
        remedy: 'write it another way, or add a function to site/src/render.ts',
      });
      return renderer.all(node.children);
    },
  };
  return renderer;
}
