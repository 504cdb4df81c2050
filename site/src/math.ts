// Equations: the page's colours, then KaTeX (HTML for the eye, MathML for the ear).
import katex from 'katex';
import { type Meaning, paintTex } from './meaning.ts';

export type Macros = Record<string, string>;

/** MyST writes macros as `{ "\\x": { macro: "…" } }`. */
export const readMacros = (given: unknown): Macros =>
  Object.fromEntries(
    Object.entries((given ?? {}) as Record<string, string | { macro: string }>).map(([name, m]) => [
      name,
      typeof m === 'string' ? m : m.macro,
    ]),
  );

/** Throws KaTeX's own message on bad TeX. */
export function renderMath(tex: string, displayMode: boolean, meaning: Meaning, macros: Macros): string {
  const html = katex.renderToString(paintTex(tex, meaning), {
    displayMode,
    macros: { ...macros },
    strict: 'ignore',
    trust: (context) => context.command === '\\htmlClass',
  });
  return html.replace(/<annotation encoding="application\/x-tex">.*?<\/annotation>/s, '');
}

/** What a search can find of an equation: its signs as they are read, and their names in TeX ("λ" and "lambda"). */
export function symbols(tex: string, macros: Macros): string {
  const signs = katex.renderToString(tex, { output: 'mathml', throwOnError: false, macros: { ...macros }, strict: 'ignore' });
  const names = [...tex.matchAll(/\\([A-Za-z]+)/g)].map(([, name]) => name);
  const seen = signs
    .replace(/<annotation\b.*?<\/annotation>/gs, ' ')
    .replace(/<[^>]*>/g, ' ')
    .replace(/&(amp|lt|gt|quot|#x27);/g, ' ');
  return [...new Set([...seen.split(/\s+/), ...names])].filter(Boolean).join(' ');
}

const FONT_OF: [RegExp, string][] = [
  [/class="[^"]*\b(amsrm|mathbb|textbb)\b/, 'AMS-Regular'],
  [/class="[^"]*\b(mathcal)\b/, 'Caligraphic-Regular'],
  [/class="[^"]*\b(mathfrak)\b/, 'Fraktur-Regular'],
  [/class="[^"]*\b(mathscr)\b/, 'Script-Regular'],
  [/class="[^"]*\b(mathtt|texttt)\b/, 'Typewriter-Regular'],
  [/class="[^"]*\b(mathsf|textsf)\b/, 'SansSerif-Regular'],
  [/class="[^"]*\b(mathbf|textbf)\b/, 'Main-Bold'],
  [/class="[^"]*\b(boldsymbol)\b/, 'Math-BoldItalic'],
  [/class="[^"]*\b(mathit|textit)\b/, 'Main-Italic'],
  [/class="[^"]*(delimsizing size1|delim-size1|\bsmall-op\b)/, 'Size1-Regular'],
  [/class="[^"]*(delimsizing size2|\blarge-op\b)/, 'Size2-Regular'],
  [/class="[^"]*delimsizing size3/, 'Size3-Regular'],
  [/class="[^"]*(delimsizing size4|delim-size4)/, 'Size4-Regular'],
];

/** The KaTeX fonts that rendered equations use: only these are shipped. */
export function katexFonts(html: string): string[] {
  if (!html.includes('class="katex"')) return [];
  return ['Main-Regular', 'Math-Italic', ...FONT_OF.filter(([test]) => test.test(html)).map(([, font]) => font)];
}
