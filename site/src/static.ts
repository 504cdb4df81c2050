// Writes the book: node src/static.ts --content _build/site --executed _build/executed --out _build/book
// Prints one line of JSON per problem and exits 1 if there is any. Everything lies in one folder and every address is relative, so the
// book opens from a web server, from a folder below one, and from the disk.
import fs from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { type Book, readBook } from './book.ts';
import { bundle } from './bundle.ts';
import { katexFonts } from './math.ts';
import { renderPage } from './page.ts';
import type { Assets } from './renderer.ts';
import { searchEntries } from './search.ts';

export function writeBook(book: Book, content: string, out: string): void {
  fs.rmSync(out, { recursive: true, force: true });
  fs.mkdirSync(path.join(out, 'images'), { recursive: true });
  const images = path.join(content, 'public');
  for (const file of fs.existsSync(images) ? fs.readdirSync(images).sort() : []) {
    if (/\.(png|jpe?g|gif|svg|webp|avif)$/i.test(file)) fs.copyFileSync(path.join(images, file), path.join(out, 'images', file));
  }
  const assets: Assets = {
    store(name, base64) {
      fs.writeFileSync(path.join(out, 'images', name), Buffer.from(base64, 'base64'));
      return `images/${name}`;
    },
  };
  const fonts = new Set<string>();
  for (const page of book.pages) {
    const html = renderPage(book, page, assets);
    for (const font of katexFonts(html)) fonts.add(font);
    fs.writeFileSync(path.join(out, page.href), html);
  }
  if (!fs.readdirSync(path.join(out, 'images')).length) fs.rmdirSync(path.join(out, 'images'));
  bundle(out, [...fonts], searchEntries(book));
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { content: { type: 'string' }, executed: { type: 'string' }, out: { type: 'string' } } });
  const { content = '_build/site', executed = '_build/executed', out = '_build/book' } = values;
  const book = readBook({ content, executed });
  writeBook(book, content, out);
  for (const problem of book.problems) console.log(JSON.stringify(problem));
  process.exitCode = book.problems.length ? 1 : 0;
}
