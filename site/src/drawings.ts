// The mark of the book and one drawing per part, in the three colours: e exact, g grid, r error; f = filled. Box 96 × 58.

const strokes = (xs: number[], from: number, to: number): string => xs.map((x) => `M${x} ${from}V${to}`).join('');
const range = (from: number, to: number, step: number): number[] =>
  Array.from({ length: Math.floor((to - from) / step) + 1 }, (_, i) => from + i * step);

/** Six columns of three weights: two are rounded, one passes its error on, three wait. */
const columns = ['fg', 'fg', 'fr', 'fe', 'fe', 'fe']
  .map((role, c) =>
    range(8, 36, 14)
      .map((y) => `<rect class="${role}" x="${6 + c * 14}" y="${y}" width="11" height="11"/>`)
      .join(''),
  )
  .join('');

/** Nine small channels and, between the sixth and the seventh, the outlier. */
const channels = [40, 44, 38, 43, 41, 45, 39, 42, 44].map((y, i) => `M${8 + (i + (i > 5 ? 1 : 0)) * 9} 50V${y}`).join('');

const DRAWINGS: Record<number, string> = {
  1: `<path class="e" d="M4 38C30 38 32 8 48 8s18 30 44 30"/><path class="g" d="${strokes(range(6, 90, 12), 44, 52)}"/>`,
  2: '<path d="M8 50 44 14H92"/><path d="M8 4V50H92" opacity=".5"/><circle class="fg" cx="25" cy="33" r="4"/><circle class="fg" cx="74" cy="14" r="4"/><circle class="fe" cx="16" cy="42" r="4"/>',
  3: `<path class="g" stroke-width="5" d="${channels}"/><path class="e" stroke-width="5" d="M62 50V6"/><path d="M4 50.7H92" opacity=".5"/>`,
  4: `${columns}<path class="r" d="M36 54h44m-5-4 5 4-5 4"/>`,
  5: '<path class="g" d="M4 50H92M4 38H92M4 26H92M4 14H92"/><path class="e" stroke-width="7" d="M26 50V43M70 50V15"/><path d="M36 46 58 22m-1 7 1-7-7 1"/>',
  6: '<path d="M6 8H90M6 18H70M6 28H84M6 38H90M6 48H58" opacity=".55"/><path class="e" stroke-width="2" d="M20 3h26v10H20zM44 23h26v10H44zM10 33h26v10H10z"/>',
  7: '<path d="M8 4V50H92" opacity=".5"/><path class="g" d="M18 8V24H36V36H60V42H90"/><g class="fg"><circle cx="18" cy="24" r="3.6"/><circle cx="36" cy="36" r="3.6"/><circle cx="60" cy="42" r="3.6"/></g><circle class="g" cx="52" cy="22" r="3.6"/><circle class="fe" cx="88" cy="42" r="3.6"/>',
  8: '<path d="M6 18h84v20H6zM48 12v32"/><path class="fg" d="M9 21h7v14H9zM29 21h7v14h-7z"/><path class="fe" d="M51 21h7v14h-7zM61 21h7v14h-7zM81 21h7v14h-7z"/>',
  9: '<path d="M6 12H90M6 30H64M6 48H78" opacity=".55"/><path class="r" d="M30 18q3-4 6 0t6 0 6 0 6 0 6 0 6 0M10 36q3-4 6 0t6 0 6 0 6 0"/>',
  10: '<path d="M48 6V18M20 40V28H76V40M48 18V40"/><circle class="e" cx="48" cy="6" r="4"/><circle class="fg" cx="20" cy="45" r="5"/><circle class="g" cx="76" cy="45" r="5"/><circle class="g" cx="48" cy="45" r="5"/>',
};

export const drawing = (part: number): string =>
  DRAWINGS[part] ? `<svg class="picto" viewBox="0 0 96 58" aria-hidden="true">${DRAWINGS[part]}</svg>` : '';

const BELL = 'M2 23C12 23 13 3 20 3s8 20 18 20';
const GRID = strokes(range(4, 36, 8), 27, 33);

export const mark = `<svg viewBox="0 0 40 34" aria-hidden="true" fill="none" stroke-width="2"><path stroke="var(--exact)" d="${BELL}"/><path stroke="var(--grid)" d="${GRID}"/></svg>`;

/** The mark as a file of its own: no style sheet reaches it. */
export const icon = `data:image/svg+xml,${encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 34" fill="none" stroke-width="2"><path stroke="#2a7cec" d="${BELL}"/><path stroke="#e0621a" d="${GRID}"/></svg>`)}`;
