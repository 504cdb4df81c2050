// What the search finds: sections whose words, titles or code hold all the words asked for, or else some of them.
import MiniSearch, { type SearchOptions } from 'minisearch';
import type { Entry } from '../src/search.ts';

export interface Hit {
  entry: Entry;
  snippet: [string, string, string];
}
export interface Found {
  hits: Hit[];
  all: boolean;
  instead: string[];
}

const LIMIT = 8;
const AROUND = 48; // characters on each side of what was found

const OPTIONS: SearchOptions = {
  boost: { title: 4, code: 0.4, symbols: 0.4 },
  prefix: (term) => term.length > 1,
  fuzzy: (term) => (term.length > 4 ? 0.25 : false),
};

/** Small letters, no plural: "Hessians" and "hessian" are one word. */
const processTerm = (term: string): string => term.toLowerCase().replace(/(?<=\w{3})s$/, '');

/** The text around the first place where the query, or one of the found words, stands. */
export function snippet(words: string, wanted: string[]): [string, string, string] {
  const low = words.toLowerCase();
  const hit = wanted.map((w) => ({ at: low.indexOf(w.toLowerCase()), length: w.length })).find(({ at }) => at >= 0);
  if (!hit) return [words.slice(0, 2 * AROUND), '', ''];
  const from = hit.at <= AROUND ? 0 : words.indexOf(' ', hit.at - AROUND) + 1;
  const end = hit.at + hit.length;
  const cut = words.lastIndexOf(' ', end + AROUND);
  const to = end + AROUND >= words.length || cut < end ? Math.min(words.length, end + AROUND) : cut;
  return [
    (from ? '… ' : '') + words.slice(from, hit.at),
    words.slice(hit.at, end),
    words.slice(end, to) + (to < words.length ? ' …' : ''),
  ];
}

export function makeSearch(entries: Entry[]): (query: string) => Found {
  const index = new MiniSearch<Entry & { id: number }>({ fields: ['title', 'text', 'code', 'symbols'], processTerm });
  index.addAll(entries.map((entry, id) => ({ ...entry, id })));
  return (query) => {
    const phrase = query.trim().toLowerCase();
    if (!phrase) return { hits: [], all: true, instead: [] };
    const holdsPhrase = (id: number): number =>
      `${entries[id]!.title} ${entries[id]!.text}`.toLowerCase().includes(phrase) ? 10 : 1;
    const options: SearchOptions = { ...OPTIONS, boostDocument: (id) => holdsPhrase(id as number) };
    const every = index.search(query, { ...options, combineWith: 'AND' });
    const found = every.length ? every : index.search(query, { ...options, combineWith: 'OR' });
    const hits = found.slice(0, LIMIT).map((result): Hit => {
      const entry = entries[result.id as number]!;
      const terms = [phrase, ...Object.keys(result.match)];
      const inText = terms.some((t) => entry.text.toLowerCase().includes(t));
      return { entry, snippet: snippet(inText || !entry.code ? entry.text : entry.code.replace(/\s+/g, ' '), terms) };
    });
    const instead = hits.length
      ? []
      : index
          .autoSuggest(query, { fuzzy: 0.45, prefix: true, combineWith: 'OR' })
          .slice(0, 4)
          .map((s) => s.suggestion);
    return { hits, all: every.length > 0, instead };
  };
}
