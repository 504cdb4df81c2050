// A page's dictionary: which names and symbols stand for the value as trained, for its grid, for the error.
// It paints code (after highlight.js), inline code and equations (before KaTeX).

export type Role = 'exact' | 'grid' | 'error';
export type Meaning = ReadonlyMap<string, Role>;

const ROLES: readonly string[] = ['exact', 'grid', 'error'];

/** From a page's `options.meaning`; throws a sentence that says what to write instead. */
export function readMeaning(options: unknown): Meaning {
  const given = (options as { meaning?: Record<string, string> } | undefined)?.meaning ?? {};
  for (const [name, role] of Object.entries(given)) {
    if (!ROLES.includes(role)) throw new Error(`meaning of ${name} is "${role}": write one of ${ROLES.join(', ')}`);
  }
  return new Map(Object.entries(given) as [string, Role][]);
}

const isName = (key: string): boolean => /^[A-Za-z_]\w*$/.test(key);
const literally = (s: string): string => s.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

/** Colours names in highlighted code. Strings and comments stay quiet; what an f-string evaluates is code again. */
export function paintCode(html: string, meaning: Meaning): string {
  const names = [...meaning.keys()].filter(isName).map(literally);
  if (!names.length) return html;
  const name = new RegExp(`(?<![\\w.])(${names.join('|')})(?!\\w)`, 'g');
  const open: (string | undefined)[] = [];
  return html
    .split(/(<[^>]*>)/)
    .map((piece) => {
      if (piece.startsWith('</')) {
        open.pop();
        return piece;
      }
      if (piece.startsWith('<')) {
        open.push(/hljs-(\w+)/.exec(piece)?.[1]);
        return piece;
      }
      if (['string', 'comment'].includes(open.at(-1) ?? '')) return piece;
      return piece.replace(name, (n) => `<span class="${meaning.get(n)}">${n}</span>`);
    })
    .join('');
}

const TEX_TOKEN = /\\[A-Za-z]+\*?|\\.|\s+|./gsu;
const VERBATIM = new Set([
  '\\text',
  '\\textrm',
  '\\textit',
  '\\operatorname',
  '\\operatorname*',
  '\\mathrm',
  '\\mathsf',
  '\\begin',
  '\\end',
  '\\label',
  '\\tag',
  '\\textcolor',
  '\\htmlClass',
]);

const texTokens = (tex: string): string[] => tex.match(TEX_TOKEN) ?? [];

/** Index just after the brace group that starts at or after `i`. */
function afterGroup(tokens: string[], i: number): number {
  while (/^\s+$/.test(tokens[i] ?? '')) i++;
  if (tokens[i] !== '{') return i + 1;
  for (let depth = 0; i < tokens.length; i++) {
    if (tokens[i] === '{') depth++;
    if (tokens[i] === '}' && --depth === 0) return i + 1;
  }
  return i;
}

/** Where `pattern` ends if it starts at token `i`; blanks and single braces between (\hat{w}) do not matter. */
function matches(tokens: string[], i: number, pattern: string[]): number | undefined {
  let open = 0;
  for (const [k, want] of pattern.entries()) {
    while (k > 0 && (tokens[i] === '{' || /^\s+$/.test(tokens[i] ?? ''))) {
      if (tokens[i] === '{') open++;
      i++;
    }
    if (tokens[i++] !== want) return undefined;
  }
  for (; open > 0; open--) if (tokens[i++] !== '}') return undefined;
  return i;
}

/** Wraps the symbols of the dictionary in \htmlClass{role}{…}; the longest entry wins (\hat w before w). */
export function paintTex(tex: string, meaning: Meaning): string {
  const patterns = [...meaning]
    .map(([key, role]) => ({ role, tokens: texTokens(key).filter((t) => t.trim()) }))
    .filter(({ tokens }) => tokens.length && tokens.every((t) => t.length === 1 || t.startsWith('\\')))
    .sort((a, b) => b.tokens.length - a.tokens.length);
  if (!patterns.length) return tex;
  const tokens = texTokens(tex);
  let out = '';
  for (let i = 0; i < tokens.length;) {
    const token = tokens[i]!;
    if (VERBATIM.has(token)) {
      const end = afterGroup(tokens, i + 1);
      out += tokens.slice(i, end).join('');
      i = end;
      continue;
    }
    const hit = patterns.map((p) => ({ role: p.role, end: matches(tokens, i, p.tokens) })).find((m) => m.end);
    const end = hit?.end ?? i + 1;
    const source = tokens.slice(i, end).join('');
    out += hit ? `\\htmlClass{${hit.role}}{${source}}` : source;
    i = end;
  }
  return out;
}
