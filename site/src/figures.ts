// Figures: one SVG inline for both themes, its caption beside it or below, its number.
import { attributes, escape } from './html.ts';

export interface Numbered {
  word: string;
  number: string;
  id: string;
}

/** Captions from Python are plain text with three marks: *emphasis*, `code`, [words]{.exact}. */
export const inlineMarks = (caption: string): string =>
  escape(caption)
    .replace(/`([^`]+)`/g, '<code>$1</code>')
    .replace(/\[([^\]]+)\]\{\.(exact|grid|error)\}/g, '<span class="$2">$1</span>')
    .replace(/(?<![\w*])\*([^*]+)\*(?![\w*])/g, '<em>$1</em>');

export const captionHtml = (caption: string, numbered?: Numbered): string =>
  numbered ? `<b>${numbered.word} ${numbered.number}.</b> ${caption}` : caption;

/** Ids inside the SVG get a prefix, so that two figures on a page cannot clash. */
const ownIds = (svg: string, prefix: string): string => svg.replace(/(\bid="|href="#|url\(#)(?=[\w-])/g, `$1${prefix}-`);

const WIDE = 500; // units of the viewBox: figures of the text's width have 432, wide ones 626

export const isWide = (svg: string): boolean => Number(/viewBox="[\d.-]+ [\d.-]+ ([\d.]+)/.exec(svg)?.[1] ?? 0) > WIDE;

/** Takes the `<svg>` out of a file with or without XML header, and gives it class, role and words. */
export function inlineSvg(source: string, alt: string, prefix: string): string {
  const svg = /<svg[\s\S]*<\/svg>/.exec(source)?.[0] ?? '';
  const [, head = '', rest = ''] = /^<svg([^>]*)>([\s\S]*)$/.exec(ownIds(svg, prefix)) ?? [];
  const kept = head.replace(/\s(class|role|aria-label|width|height)="[^"]*"/g, '');
  return `<svg class="fig" role="img" aria-label="${escape(alt)}"${kept}>${rest}`;
}

export interface FigureParts {
  picture: string;
  caption: string;
  wide: boolean;
  columns?: string[][];
  numbered?: Numbered;
}

/** A figure. Narrow with a caption: the caption stands in the margin. `columns`: words below parts of the picture. */
export function figure({ picture, caption, wide, columns, numbered }: FigureParts): string {
  const under = columns?.length
    ? `<ol class="columns" style="--columns:${columns.length}">${columns.map(([first, ...more]) => `<li>${escape(first)}${more.map((m) => `<span>${escape(m)}</span>`).join('')}</li>`).join('')}</ol>`
    : '';
  const words = caption || numbered ? `<figcaption>${captionHtml(caption, numbered)}</figcaption>` : '';
  const kind = wide ? 'wide' : words ? 'beside' : '';
  return `<figure${attributes({ id: numbered?.id, class: [kind, under && 'strip'].filter(Boolean).join(' ') })}>${under ? picture + under : picture}${words}</figure>`;
}
