// For writing: `myst start` in the project's folder shows the pages while they are edited (template.yml starts this server). MyST serves
// what it has read at CONTENT_CDN_PORT; each request for a page fetches that and writes the book anew. Outputs are those of the last
// `make book`, as far as the cells are still the same. The book itself is built by build.py, without this server.
import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { readBook } from './book.ts';
import { writeBook } from './static.ts';

const { PORT = '3000', HOST = 'localhost', CONTENT_CDN_PORT = '3100', MODE } = process.env;
const content = `http://localhost:${CONTENT_CDN_PORT}`;
const executed = path.resolve(import.meta.dirname, '../../_build/executed');
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'book-'));
const TYPES: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css',
  '.js': 'text/javascript',
  '.woff2': 'font/woff2',
  '.svg': 'image/svg+xml',
  '.png': 'image/png',
  '.jpg': 'image/jpeg',
};

async function fetchJson(name: string): Promise<{ projects: { index: string; pages: { slug?: string }[] }[] }> {
  const answer = await fetch(`${content}/${name}`);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  const file = path.join(work, 'site', name);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  const json = await answer.json();
  fs.writeFileSync(file, JSON.stringify(json));
  return json as never;
}

/** Writes the book from what MyST has read; returns the file of each slug. */
async function update(): Promise<Map<string, string>> {
  const project = (await fetchJson('config.json')).projects[0]!;
  for (const slug of [project.index, ...project.pages.flatMap((p) => p.slug ?? [])]) await fetchJson(`content/${slug}.json`);
  const book = readBook({ content: path.join(work, 'site'), executed });
  writeBook(book, path.join(work, 'site'), path.join(work, 'book'));
  for (const p of book.problems) console.error(`${p.file}${p.line ? `:${p.line}` : ''}: ${p.what}. ${p.remedy}`);
  return new Map(book.pages.map((p) => [p.slug, p.href]));
}

async function answer(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
  const name = decodeURIComponent(new URL(request.url ?? '/', 'http://x').pathname).replace(/^\/|\/$/g, '') || 'index';
  const pages = /\.(?!html$)\w+$/.test(name) ? undefined : await update();
  const file = path.join(work, 'book', path.normalize(pages?.get(name) ?? name));
  if (!file.startsWith(work) || !fs.existsSync(file)) return void response.writeHead(404).end(`${name} is not a page of the book`);
  response.setHeader('content-type', TYPES[path.extname(file)] ?? 'application/octet-stream');
  fs.createReadStream(file).pipe(response);
}

if (MODE === 'static') {
  console.error('build the book with make book: myst build --html is for MyST’s own themes');
  process.exit(1);
}
process.on('exit', () => fs.rmSync(work, { recursive: true, force: true }));
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(0));
http
  .createServer((request, response) => {
    answer(request, response).catch((error: Error) => response.writeHead(500).end(error.message));
  })
  .listen(Number(PORT), HOST, () => console.log(`Server started at http://${HOST}:${PORT}`));
