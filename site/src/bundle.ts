// The files that all pages share: style sheets, scripts, fonts and their licences.
import fs from 'node:fs';
import path from 'node:path';
import { buildSync } from 'esbuild';
import type { Entry } from './search.ts';

const here = path.resolve(import.meta.dirname, '..');
const modules = path.join(here, 'node_modules');

const TEXT_FONTS: [string, string, string][] = [
  ['serif', 'source-serif-4', 'source-serif-4-latin-400-normal'],
  ['serif-italic', 'source-serif-4', 'source-serif-4-latin-400-italic'],
  ['sans', 'source-sans-3', 'source-sans-3-latin-400-normal'],
  ['mono', 'source-code-pro', 'source-code-pro-latin-400-normal'],
];

/** Every library and font that readers receive goes with its licence. */
function copyFonts(out: string, katex: string[]): void {
  const [fonts, licences] = [path.join(out, 'fonts'), path.join(out, 'licences')];
  for (const folder of [fonts, licences]) fs.mkdirSync(folder, { recursive: true });
  const licence = (name: string, file: string): void =>
    fs.copyFileSync(path.join(modules, file), path.join(licences, `${name}.txt`));
  for (const [name, family, file] of TEXT_FONTS) {
    fs.copyFileSync(path.join(modules, '@fontsource', family, 'files', `${file}.woff2`), path.join(fonts, `${name}.woff2`));
    licence(family, `@fontsource/${family}/LICENSE`);
  }
  for (const font of katex)
    fs.copyFileSync(path.join(modules, 'katex/dist/fonts', `KaTeX_${font}.woff2`), path.join(fonts, `KaTeX_${font}.woff2`));
  if (katex.length) licence('katex', 'katex/LICENSE');
  licence('minisearch', 'minisearch/LICENSE.txt');
}

/** KaTeX's style sheet with the fonts that the book uses and no others. */
export function katexCss(css: string, fonts: string[]): string {
  return css.replace(/@font-face\{[^}]*\}/g, (rule) => {
    const file = /url\(fonts\/KaTeX_([\w-]+)\.woff2\)/.exec(rule)?.[1];
    if (!file || !fonts.includes(file)) return '';
    return rule
      .replace(/src:[^;}]*/, `src:url(fonts/KaTeX_${file}.woff2) format("woff2")`)
      .replace('font-display:block', 'font-display:swap');
  });
}

export function bundle(out: string, fonts: string[], entries: Entry[]): void {
  copyFonts(out, fonts);
  if (fonts.length)
    fs.writeFileSync(
      path.join(out, 'katex.css'),
      katexCss(fs.readFileSync(path.join(modules, 'katex/dist/katex.min.css'), 'utf8'), fonts),
    );
  const shared = { bundle: true, minify: true, legalComments: 'none', logLevel: 'error', absWorkingDir: here } as const;
  buildSync({ ...shared, entryPoints: { book: 'style/book.css' }, outdir: path.resolve(out), external: ['*.woff2'] });
  buildSync({
    ...shared,
    entryPoints: { book: 'client/book.ts', search: 'client/search-index.ts' },
    outdir: path.resolve(out),
    format: 'iife',
    target: 'es2022',
  });
  fs.writeFileSync(path.join(out, 'search-entries.js'), `window.BOOK = ${JSON.stringify(entries).replace(/<\//g, '<\\/')};\n`);
}
