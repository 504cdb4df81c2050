// One page, from its tree to its file.
import type { Book, Page } from './book.ts';
import { frame, sections } from './frame.ts';
import { makeRenderer } from './render.ts';
import type { Assets } from './renderer.ts';
import { sources } from './sources.ts';
import { split, titleHtml } from './title.ts';

export function renderPage(book: Book, page: Page, assets: Assets): string {
  const r = makeRenderer(book, page, assets);
  const parts = split(page.nodes);
  const title = titleHtml(book, page, parts, r);
  const cut = sources(page, parts.rest, r);
  const article = `${title}\n${cut.before.map((n) => r.one(n)).join('\n')}\n${cut.html}${r.all(cut.after)}`;
  const open = sections(page.nodes);
  if (cut.html && !open.some((s) => /^(sources|references)$/i.test(s.title))) open.push({ id: 'sources', title: 'Sources' });
  return frame(book, page, open, article);
}
