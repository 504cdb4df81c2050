// A code cell of the page: what went in, what came out. Text stands on the ink line under the code; pictures, tables and widgets stand
// by themselves. Here a missing alternative text, an oversize widget or a view that no static page can show becomes a problem.
import { highlight, panel } from './code.ts';
import { figure, inlineMarks, inlineSvg, isWide, type Numbered } from './figures.ts';
import { attributes, escape } from './html.ts';
import type { Meaning } from './meaning.ts';
import { type Cell, joined, type Output } from './runs.ts';
import { readTable, table } from './tables.ts';
import type { Problem } from './tree.ts';

export const BUDGET = { widget: 200_000, widgetsOfPage: 300_000, picture: 40_000 };

export interface OutputContext {
  file: string;
  meaning: Meaning;
  numbered?: Numbered;
  prefix: string;
  problem(problem: Problem): void;
  /** Stores the bytes of a raster image; returns its address. */
  asset(base64: string, extension: string): string;
  /** Counts the bytes of the page's widgets. */
  widgetBytes(bytes: number): number;
}

const ANSI = /\u001b\[[0-9;]*[A-Za-z]/g;
const kB = (bytes: number): string => `${(bytes / 1000).toFixed(0)} kB`;

const plain = (words: string, name = 'Output'): string =>
  `<pre tabindex="0" role="group" aria-label="${name}"><code>${escape(words.replace(ANSI, '').replace(/\s+$/, ''))}</code></pre>`;

/** 0.04 s, 2.6 s, 31 s; nothing for what takes no time. */
export const seconds = (s: number | undefined): string =>
  s === undefined || s < 0.005 ? '' : `${s.toFixed(s < 0.095 ? 2 : s < 9.95 ? 1 : 0)}\u2009s`;

type Piece = { kind: 'text' | 'block'; html: string };

function widget(html: string, context: OutputContext, fail: (what: string, remedy: string) => void): string {
  const bytes = Buffer.byteLength(html);
  if (bytes > BUDGET.widget)
    fail(
      `its widget is ${kB(bytes)}, over the ${kB(BUDGET.widget)} a widget may have`,
      'use fewer settings or fewer marks per frame',
    );
  else if (context.widgetBytes(bytes) > BUDGET.widgetsOfPage)
    fail(`with it the page's widgets pass ${kB(BUDGET.widgetsOfPage)}`, 'use fewer settings, or move a widget to another page');
  const { numbered } = context;
  if (!numbered) return html;
  return `<div id="${escape(numbered.id)}">${html.replace('<figcaption>', `<figcaption><b>${numbered.word} ${numbered.number}.</b> `)}</div>`;
}

function picture(output: Output, context: OutputContext, fail: (what: string, remedy: string) => void): string | undefined {
  const data = output.data ?? {};
  const mime = ['image/svg+xml', 'image/png', 'image/jpeg'].find((m) => data[m] !== undefined);
  if (!mime) return undefined;
  const told = (output.metadata?.[mime] ?? {}) as { alt?: string; caption?: string; columns?: string[][] };
  if (!told.alt?.trim())
    fail(
      `it shows a picture (${mime}) without alternative text`,
      'show it with quantlib.book.show(fig, alt="the finding in words, with numbers")',
    );
  const source = joined(data[mime]);
  const svg = mime === 'image/svg+xml';
  if (svg && Buffer.byteLength(source) > BUDGET.picture)
    fail(
      `its figure is ${kB(Buffer.byteLength(source))}, over the ${kB(BUDGET.picture)} a figure may have`,
      'draw fewer marks: one path for many strokes, a histogram for many points',
    );
  const html = svg
    ? inlineSvg(source, told.alt ?? '', context.prefix)
    : `<img src="${escape(context.asset(source, mime === 'image/png' ? 'png' : 'jpg'))}" alt="${escape(told.alt)}" loading="lazy">`;
  return figure({
    picture: html,
    caption: inlineMarks(told.caption ?? ''),
    wide: svg && isWide(source),
    columns: told.columns,
    numbered: context.numbered,
  });
}

function rich(output: Output, context: OutputContext, fail: (what: string, remedy: string) => void): Piece | undefined {
  const data = output.data ?? {};
  const html = joined(data['text/html']);
  if (html.includes('class="explore')) return { kind: 'block', html: widget(html, context, fail) };
  if (/<table[\s>]/.test(html)) {
    const told = (output.metadata?.['text/html'] ?? {}) as { caption?: string; bars?: boolean; wide?: boolean };
    return {
      kind: 'block',
      html: table({
        ...readTable(html),
        bars: Boolean(told.bars),
        wide: Boolean(told.wide),
        caption: inlineMarks(told.caption ?? ''),
        numbered: context.numbered,
        name: 'Table',
      }),
    };
  }
  if (html) return { kind: 'block', html: `<div class="html">${html}</div>` };
  const shown = picture(output, context, fail);
  if (shown) return { kind: 'block', html: shown };
  if (data['application/vnd.jupyter.widget-view+json']) {
    fail('it shows a widget that has no static half', 'use explore(), which carries its frames with it');
    return undefined;
  }
  if ((output.metadata?.['text/markdown'] as { role?: string } | undefined)?.role === 'caption') return undefined;
  const shownCode = /^````(\w+)\n([\s\S]*)\n````\s*$/.exec(joined(data['text/markdown']));
  if (shownCode) return { kind: 'block', html: `<div class="cell">${panel(highlight(shownCode[2]!, shownCode[1], context.meaning), 'Source')}</div>` };
  const words = joined(data['text/plain'] ?? data['text/markdown']);
  return words ? { kind: 'text', html: plain(words) } : undefined;
}

function piece(output: Output, context: OutputContext, fail: (what: string, remedy: string) => void): Piece | undefined {
  if (output.output_type === 'stream') {
    return output.name === 'stderr' || !joined(output.text).trim() ? undefined : { kind: 'text', html: plain(joined(output.text)) };
  }
  if (output.output_type === 'error') return { kind: 'text', html: plain(`${output.ename}: ${output.evalue}`, 'Error') };
  return rich(output, context, fail);
}

/** Several prints of a cell arrive as several streams: one block of text. */
function merge(outputs: Output[]): Output[] {
  const out: Output[] = [];
  for (const output of outputs) {
    const last = out.at(-1);
    if (output.output_type === 'stream' && output.name === 'stderr') continue;
    if (last?.output_type === 'stream' && output.output_type === 'stream')
      out[out.length - 1] = { ...last, text: joined(last.text) + joined(output.text) };
    else out.push(output);
  }
  return out;
}

const block = (inner: string): string => (inner ? `<div class="cell">${inner}</div>` : '');

/** Text follows the code in one block; what stands by itself ends the block. `took` stands beside the first text. */
function stack(pieces: Piece[], took: string, input = ''): string {
  let html = '';
  let open = input;
  let time = took && `<small>${took}</small>`;
  for (const piece of pieces) {
    if (piece.kind === 'block') {
      html += block(open) + piece.html;
      open = '';
    } else {
      open += `<div class="out">${piece.html}${time}</div>`;
      time = '';
    }
  }
  return html + block(open);
}

export function renderCell(cell: Cell, context: OutputContext): string {
  if (cell.shown === 'remove') return '';
  const at = { file: context.file, line: cell.run?.line };
  const fail = (what: string, remedy: string): void =>
    context.problem({ ...at, what: `the cell${cell.identifier ? ` "${cell.identifier}"` : ''}: ${what}`, remedy });
  const pieces =
    cell.output === 'remove'
      ? []
      : merge(cell.run?.outputs ?? [])
          .map((o) => piece(o, context, fail))
          .filter((p) => p !== undefined);
  const code = cell.input === 'remove' || !cell.code.trim() ? '' : panel(highlight(cell.code, cell.language, context.meaning));
  const input = cell.input === 'hide' && code ? `<details class="source"><summary>Code</summary>${code}</details>` : code;
  const took = seconds(cell.run?.seconds);
  const html =
    cell.output === 'hide' && pieces.length
      ? block(input) + `<details class="fold"><summary>Output</summary>${stack(pieces, took)}</details>`
      : stack(pieces, took, input);
  if (cell.run && context.numbered && !pieces.some((p) => p.kind === 'block'))
    fail('it is labelled and shows nothing that could be numbered', 'end it with show(…), or remove the label');
  const all = cell.shown === 'hide' ? `<details class="fold"><summary>Code and output</summary>${html}</details>` : html;
  return context.numbered || !cell.html_id ? all : `<div${attributes({ id: cell.html_id })}>${all}</div>`;
}
