// The frame of every page: head, contents with search and theme, before and after, colophon.
import type { Book, Page, Part } from './book.ts';
import { icon, mark } from './drawings.ts';
import { escape } from './html.ts';
import { type Node, text } from './tree.ts';
import { balanced } from './title.ts';

const BRANCH = 'main';

export interface Section {
  id: string;
  title: string;
}

export const sections = (nodes: Node[]): Section[] =>
  nodes
    .filter((n) => n.type === 'heading' && Number(n.depth) === 2)
    .map((n) => ({ id: String(n.html_id ?? n.identifier), title: text(n) }));

/** Runs before the first paint, so that a chosen theme does not flash. The same name as in client/memory.ts. */
const THEME = `(function (root, theme) {
try { theme = JSON.parse(localStorage.getItem('book:' + root.dataset.book + ':' + location.pathname.replace(/[^/]*$/, ''))).theme } catch (e) { }
root.dataset.theme = theme === 'light' || theme === 'dark' ? theme : 'auto'
})(document.documentElement)`;

const head = (book: Book, page: Page, withMath: boolean): string => `<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(page.title === book.title ? book.title : `${page.title} · ${book.title}`)}</title>
${page.description ? `<meta name="description" content="${escape(page.description)}">\n` : ''}<script>${THEME}</script>
<link rel="icon" href="${icon}">
${withMath ? '<link rel="stylesheet" href="katex.css">\n' : ''}<link rel="stylesheet" href="book.css">
<script defer src="book.js"></script>`;

const titleLines = (title: string): string =>
  balanced(title)
    .filter(Boolean)
    .map((s) => escape(s))
    .join('<br> ');

/** One line of the contents; below the page that is open, its sections. */
function line(key: string, number: string, title: string, href: string | undefined, open: Section[] | undefined): string {
  const words = `${number ? `<i>${number}</i>` : ''}${escape(title)}`;
  if (!href)
    return `<li data-part="${key}" class="planned"><span class="row">${words}<span class="vh">, not yet written</span></span></li>`;
  const below = open?.length
    ? `<ol>${open.map((s) => `<li><a href="#${escape(s.id)}">${escape(s.title)}</a></li>`).join('')}</ol>`
    : '';
  return `<li data-part="${key}"><a href="${href}"${open ? ' aria-current="page"' : ''}>${words}<span class="was-read vh"></span></a>${below}</li>`;
}

function contents(book: Book, page: Page, open: Section[]): string {
  const [first, ...others] = book.pages;
  const lines = [line('index', '', 'Start here', first!.href, page === first ? open : undefined)];
  let planned = false;
  for (const part of book.parts) {
    if (!part.page && !planned) lines.push('<li class="label" aria-hidden="true">Not yet written</li>');
    planned = !part.page;
    lines.push(line(String(part.number), String(part.number), part.title, part.page?.href, part.page === page ? open : undefined));
  }
  for (const other of others.filter((p) => !p.part))
    lines.push(line(other.name, '', other.title, other.href, other === page ? open : undefined));
  return lines.join('\n');
}

const themes = ['auto', 'light', 'dark']
  .map(
    (t) =>
      `<label><input type="radio" name="theme" value="${t}"${t === 'auto' ? ' checked' : ''}>${t[0]!.toUpperCase()}${t.slice(1)}</label>`,
  )
  .join('');

const side = (book: Book, page: Page, open: Section[]): string => `<a class="skip" href="#main">Skip to the text</a>
<header class="side">
<a class="brand" href="index.html">${mark}<span>${titleLines(book.title)}</span></a>
<button class="menu quiet" type="button" aria-expanded="false" aria-controls="drawer">Contents</button>
<div class="drawer" id="drawer">
<form class="search" role="search"><label class="vh" for="search">Search the lessons</label><input id="search" type="search" placeholder="Search the lessons" autocomplete="off" aria-controls="hits"><kbd aria-hidden="true">/</kbd><p class="vh" role="status"></p><ul class="hits" id="hits" hidden></ul></form>
<nav class="parts" aria-label="Parts"><ol>
${contents(book, page, open)}
</ol></nav>
<fieldset class="theme"><legend class="vh">Colours</legend>${themes}</fieldset>
</div>
</header>`;

interface Stop {
  title: string;
  href?: string;
  part?: Part;
}

/** The way through the book: the first page, then the parts, written or not, then the rest. */
function way(book: Book): Stop[] {
  const [first, ...others] = book.pages;
  const stops: Stop[] = [{ title: 'Start here', href: first!.href }];
  for (const part of book.parts) stops.push({ title: part.title, href: part.page?.href, part });
  return [...stops, ...others.filter((p) => !p.part).map((p) => ({ title: p.title, href: p.href }))];
}

function step(stop: Stop | undefined, word: string, rel: string): string {
  if (!stop) return '<span></span>';
  const small = `<small>${word}${stop.part ? `, part ${stop.part.number}` : ''}${stop.href ? '' : ' · not yet written'}</small>${escape(stop.title)}`;
  return stop.href ? `<a rel="${rel}" href="${stop.href}">${small}</a>` : `<span class="planned">${small}</span>`;
}

function beforeAndAfter(book: Book, page: Page): string {
  const stops = way(book);
  const i = stops.findIndex((s) => s.href === page.href);
  if (i <= 0) return '';
  return `<nav class="prev-next" aria-label="Before and after">${step(stops[i - 1], 'Before', 'prev')}${step(stops[i + 1], 'Next', 'next')}</nav>`;
}

function colophon(page: Page): string {
  const made = page.run?.machine
    ? `Every output on this page was made by the build that made the page: ${escape(page.run.machine)}.`
    : '';
  const repository = page.github?.replace(/\/$/, '');
  const source = repository
    ? ` <a href="${escape(repository)}/blob/${BRANCH}/${escape(page.file)}">Source of this page</a> · <a href="${escape(repository)}/edit/${BRANCH}/${escape(page.file)}">Suggest a change</a>`
    : '';
  return made || source ? `<footer class="colophon">${made}${source}</footer>` : '';
}

const done =
  '<label class="done"><input type="checkbox"> I have read this part <span class="hint">kept in this browser only</span></label>';

export function frame(book: Book, page: Page, open: Section[], article: string): string {
  const isCover = page.slug === 'index';
  const key = isCover ? 'index' : String(page.part?.number ?? page.name);
  return `<!doctype html>
<html lang="en" data-page="${escape(key)}" data-book="${escape(book.title)}">
<head>
${head(book, page, article.includes('class="katex"'))}
</head>
<body>
${side(book, page, open)}
<main id="main">
<article${isCover ? ' class="cover"' : ''}>
${article}
${page.part ? done : ''}
</article>
${beforeAndAfter(book, page)}
${colophon(page)}
</main>
</body>
</html>
`;
}
