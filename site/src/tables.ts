// Tables: numbers stand in columns with their decimals aligned, and a last column may draw bars.
import { attributes } from './html.ts';
import { captionHtml, type Numbered } from './figures.ts';

export interface Entry {
  html: string;
  words: string;
  header: boolean;
  role?: string;
  off?: boolean;
  span?: number;
  rows?: number;
}
export interface TableParts {
  head: Entry[][];
  body: Entry[][];
  bars: boolean;
  wide: boolean;
  caption: string;
  numbered?: Numbered;
  name: string;
}

const NUMBER = /^[+\u2212-]?(\d{1,3}([,\u2009\u202f ]\d{3})+|\d+)(\.\d+)?\s?(%|dB|[kMGT]?B|ms|s|×)?$/;
const BLANK = /^[–—-]?$/;

export const numeric = (words: string): number | undefined =>
  NUMBER.test(words) ? Number(words.replace('\u2212', '-').replace(/[,\s\u2009\u202f]|[^\d.+-]/g, '')) : undefined;

const isNumeric = (entries: Entry[]): boolean =>
  entries.some((e) => numeric(e.words) !== undefined) &&
  entries.every((e) => numeric(e.words) !== undefined || BLANK.test(e.words));

const decimals = (words: string): string => /(\.\d+)/.exec(words)?.[1] ?? '';

/** Hidden zeros after a number, so that decimal points stand under each other. */
function padding(words: string, longest: number): string {
  const have = decimals(words).length;
  if (numeric(words) === undefined || have >= longest) return '';
  return `<i class="pad">${have ? '' : '.'}${'0'.repeat(longest - Math.max(have, 1))}</i>`;
}

function bar(entry: Entry, most: number): string {
  if (entry.off) return '';
  const share = Math.max(0, (numeric(entry.words) ?? 0) / most) * 100;
  return `--v:${share.toFixed(1).replace(/\.0$/, '')}%${entry.role ? `;--c:var(--${entry.role})` : ''}`;
}

export function table({ head, body, bars, wide, caption, numbered, name }: TableParts): string {
  const width = Math.max(0, ...[...head, ...body].map((row) => row.length));
  const columns = Array.from({ length: width }, (_, i) => {
    const entries = body.map((row) => row[i]).filter((e) => e !== undefined);
    const isNumber = i > 0 && isNumeric(entries); // the first column names its row
    return {
      isNumber,
      bars: bars && isNumber && i === width - 1,
      longest: Math.max(0, ...entries.map((e) => decimals(e.words).length)),
      most: Math.max(...entries.filter((e) => !e.off).map((e) => numeric(e.words) ?? 0), Number.MIN_VALUE),
    };
  });
  const cell = (entry: Entry, i: number, inHead: boolean): string => {
    const column = columns[i] ?? { isNumber: false, bars: false, longest: 0, most: 1 };
    const classes = [column.isNumber && 'num', column.bars && 'bar', column.bars && !inHead && entry.off && 'off']
      .filter(Boolean)
      .join(' ');
    const style = column.bars && !inHead ? bar(entry, column.most) : '';
    const tag = inHead || entry.header ? 'th' : 'td';
    const scope = tag === 'th' ? (inHead ? 'col' : 'row') : '';
    const pad = column.isNumber && !inHead && !entry.off ? padding(entry.words, column.longest) : '';
    return `<${tag}${attributes({ scope, class: classes, style, colspan: entry.span, rowspan: entry.rows })}>${entry.html}${pad}</${tag}>`;
  };
  const row = (entries: Entry[], inHead: boolean): string => `<tr>${entries.map((e, i) => cell(e, i, inHead)).join('')}</tr>`;
  const label = numbered ? `${numbered.word} ${numbered.number}` : name;
  const words = caption || numbered ? `<figcaption>${captionHtml(caption, numbered)}</figcaption>` : '';
  return (
    `<figure${attributes({ id: numbered?.id, class: wide ? 'wide table' : 'table' })}><div class="scroll" tabindex="0" role="group" aria-label="${label}"><table>` +
    (head.length ? `<thead>${head.map((r) => row(r, true)).join('')}</thead>` : '') +
    `<tbody>${body.map((r) => row(r, false)).join('')}</tbody></table></div>${words}</figure>`
  );
}

const ENTITIES: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', nbsp: ' ', '#39': "'" };
const wordsOf = (html: string): string =>
  html
    .replace(/<[^>]*>/g, '')
    .replace(/&(amp|lt|gt|quot|nbsp|#39);/g, (_, e: string) => ENTITIES[e]!)
    .trim();

/** Reads the one `<table>` of a cell's output (pandas writes such), so that it looks like a table of the text. */
export function readTable(html: string): { head: Entry[][]; body: Entry[][] } {
  const rows = [...html.matchAll(/<tr[^>]*>([\s\S]*?)<\/tr>/g)].map(([, inner]) =>
    [...inner!.matchAll(/<(t[hd])([^>]*)>([\s\S]*?)<\/t[hd]>/g)].map(([, tag, given, content]): Entry => {
      const classes = /class="([^"]*)"/.exec(given!)?.[1]?.split(/\s+/) ?? [];
      const span = Number(/colspan="?(\d+)/.exec(given!)?.[1] ?? 1);
      const rowSpan = Number(/rowspan="?(\d+)/.exec(given!)?.[1] ?? 1);
      return {
        html: content!.trim(),
        words: wordsOf(content!),
        header: tag === 'th',
        role: classes.find((c) => /^(exact|grid|error)$/.test(c)),
        off: classes.includes('off'),
        ...(span > 1 && { span }),
        ...(rowSpan > 1 && { rows: rowSpan }),
      };
    }),
  );
  const isHead = (row: Entry[]): boolean => row.length > 0 && row.every((e) => e.header);
  return { head: rows.filter(isHead), body: rows.filter((row) => row.length && !isHead(row)) };
}
