// Pages are written flat, so that they read well in Jupyter: a question, then a cell, then an explanation. Here what belongs
// together becomes one node: a prediction with its run, an exercise with its solution, a refuted claim with the code that shows it,
// the lists and headings after a comment such as <!-- parts -->.
import { parse } from 'yaml';
import { type Cell, isCell } from './runs.ts';
import { hasClass, type Node, walk } from './tree.ts';

/** Blocks of Markdown between cells are one run of siblings; `toRun` gives the k-th code cell its run. */
export function flatten(root: Node, makeCell: (block: Node, index: number) => Cell): Node[] {
  let count = 0;
  return (root.children ?? []).flatMap((block) => {
    if (block.kind === 'notebook-code') return [makeCell(block, count++)];
    return block.type === 'block' ? (block.children ?? []) : [block];
  });
}

const isHidden = (node: Node): boolean => isCell(node) && node.shown === 'hide';
const isRemoved = (node: Node): boolean => isCell(node) && node.shown === 'remove';
const isFold = (node: Node): boolean => node.type === 'details' || (node.type === 'admonition' && hasClass(node, 'dropdown'));
const isSeen = (node: Node): boolean => node.type === 'admonition' && hasClass(node, 'seen');
const isAsk = (node: Node): boolean => node.type === 'admonition' && hasClass(node, 'ask');
const isTitle = (node: Node): boolean => node.type === 'admonitionTitle' || node.type === 'summary';

export const body = (node: Node): Node[] => (node.children ?? []).filter((c) => !isTitle(c));
export const titleOf = (node: Node): Node | undefined => (node.children ?? []).find(isTitle);

/** The hidden cells and folded texts that follow directly, as one fold: the dropdown's own title is for Jupyter. */
function takeFold(nodes: Node[], start: number): { fold: Node[]; next: number } {
  const fold: Node[] = [];
  let next = start;
  for (; next < nodes.length && (isHidden(nodes[next]!) || isRemoved(nodes[next]!) || isFold(nodes[next]!)); next++) {
    const node = nodes[next]!;
    if (isHidden(node)) fold.push({ ...node, shown: 'show' });
    else if (isFold(node)) fold.push(...body(node));
  }
  return { fold, next };
}

/** The run of a refuted claim: cells and folds up to the second `seen`, if there is one before other text. */
function takeRefutation(nodes: Node[], start: number): { fold: Node[]; next: number } {
  const fold: Node[] = [];
  let next = start;
  while (next < nodes.length && isCell(nodes[next]!)) fold.push(nodes[next++]!);
  if (next > start && next < nodes.length && isSeen(nodes[next]!)) fold.push(...body(nodes[next++]!));
  return { fold, next };
}

/** What the template is told in comments: `parts`, `go`, `ways`, `score`, `status`, `claims`, `bibliography`, `label: words`. */
const direction = (node: Node): string | undefined => {
  const words = node.type === 'comment' ? (node.value ?? '').trim() : '';
  return /^(parts|go|ways|score|status|claims|bibliography)$/.test(words) || words.startsWith('label:') ? words : undefined;
};

/** In their place stands what the template makes, without any node of the page's. */
const STANDS_ALONE = new Set(['score', 'status', 'claims', 'bibliography']);

/** A section per third-level heading, up to the next heading of a higher level. */
function takeWays(nodes: Node[], start: number): { sections: Node[]; next: number } {
  const sections: Node[] = [];
  let next = start;
  for (; next < nodes.length; next++) {
    const node = nodes[next]!;
    if (node.type === 'heading' && Number(node.depth) < 3) break;
    if (node.type === 'heading') sections.push({ type: 'way', children: [node] });
    else if (sections.length) sections.at(-1)!.children!.push(node);
    else break;
  }
  return { sections, next };
}

export function group(nodes: Node[]): Node[] {
  const out: Node[] = [];
  for (let i = 0; i < nodes.length;) {
    const node = nodes[i]!;
    const told = direction(node);
    if (isAsk(node) || node.type === 'exercise') {
      const { fold, next } = takeFold(nodes, i + 1);
      out.push({ ...node, type: isAsk(node) ? 'ask' : 'exercise', fold });
      i = next;
    } else if (isSeen(node)) {
      const { fold, next } = takeRefutation(nodes, i + 1);
      const id = node.html_id ?? `seen-${out.filter((n) => n.type === 'seen').length + 1}`;
      out.push({ ...node, type: 'seen', html_id: id, fold });
      i = next;
    } else if (told === 'ways') {
      const { sections, next } = takeWays(nodes, i + 1);
      out.push({ type: 'ways', children: sections });
      i = next;
    } else if (told && STANDS_ALONE.has(told)) {
      out.push({ type: told });
      i++;
    } else if (told?.startsWith('label:')) {
      out.push({ type: 'label', value: told.slice('label:'.length).trim() });
      i++;
    } else if (told) {
      const list = nodes[i + 1];
      if (list) out.push({ ...list, type: told === 'parts' ? 'partsMap' : 'go' });
      i += 2;
    } else {
      out.push(node);
      i++;
    }
  }
  return out;
}

export interface Prediction {
  question: Node[];
  options: Node[];
  right: number;
  measured: string;
  from: string;
  to: string;
  at: number[];
}

/** A question of a quiz is a prediction of which nothing was measured: it has a right answer, and says why. */
export const isQuiz = (node: Node): boolean => hasClass(node, 'quiz');

/** Reads a prediction's options and the comment that says which is right; throws what to write instead. */
export function readPrediction(ask: Node): Prediction {
  const parts = body(ask);
  const list = parts.find((n) => n.type === 'list');
  const comment = parts.find((n) => n.type === 'comment');
  if (!list?.children?.length) throw new Error('a prediction needs a list of options: lines that start with "- [ ]"');
  if (!comment) throw new Error('a prediction needs a comment with "right: 2" (which option) and "measured: value"; a question of a quiz the first alone');
  const told = parse(comment.value ?? '') as {
    right?: number;
    measured?: unknown;
    from?: unknown;
    to?: unknown;
    at?: number[];
  } | null;
  const { right, measured, from = '', to = '', at = [] } = told ?? {};
  const count = list.children.length;
  if (!Number.isInteger(right) || right! < 1 || right! > count)
    throw new Error(`"right: ${right}" must be a number from 1 to ${count}, the place of the right option`);
  if (measured === undefined && !isQuiz(ask)) throw new Error('say what was measured: a line "measured: value" in the comment of the prediction');
  if (at.length && at.length !== count)
    throw new Error(`"at" has ${at.length} places for ${count} options: write one per option, in per cent`);
  return {
    question: parts.filter((n) => n !== list && n.type !== 'comment'),
    options: list.children,
    right: right!,
    measured: String(measured ?? ''),
    from: String(from),
    to: String(to),
    at,
  };
}

export const asserts = (nodes: Node[]): boolean =>
  nodes.some((n) => [...walk(n)].some((c) => isCell(c) && /^\s*assert\b/m.test(c.code)));
