// Numbers: figures, tables and widgets are counted page by page; every number written in the text is compared with the count.
import { isCell } from './runs.ts';
import { line, type Node, type Problem, text, walk } from './tree.ts';

export interface Target {
  page: string;
  word: 'Figure' | 'Table' | 'Widget' | 'Equation' | 'Exercise' | '';
  number: string;
}
export type Targets = Map<string, Target>;

const PREFIX: Record<string, Target['word']> = { 'fig-': 'Figure', 'tab-': 'Table', 'wid-': 'Widget' };
const wordOf = (label: string): Target['word'] | undefined => PREFIX[label.slice(0, 4)];

/** Adds the targets of one page. `page` names it, `file` is for messages. */
export function collectTargets(nodes: Node[], page: string, file: string, targets: Targets): Problem[] {
  const problems: Problem[] = [];
  const count: Record<string, number> = {};
  const next = (word: string): string => String((count[word] = (count[word] ?? 0) + 1));
  for (const node of nodes.flatMap((n) => [...walk(n)])) {
    const label = node.identifier;
    if (!label) continue;
    if (isCell(node)) {
      if (node.shown === 'remove') continue;
      const word = wordOf(label);
      if (word) targets.set(label, { page, word, number: next(word) });
      else
        problems.push({
          file,
          line: node.run?.line,
          what: `the label "${label}" of a cell does not say what it labels`,
          remedy: 'begin it with fig-, tab- or wid-',
        });
    } else if (node.type === 'container' && (node.kind === 'figure' || node.kind === 'table')) {
      const word = node.kind === 'table' ? 'Table' : 'Figure';
      targets.set(label, { page, word, number: next(word) });
    } else if (node.type === 'math' || node.type === 'exercise') {
      targets.set(label, { page, word: node.type === 'math' ? 'Equation' : 'Exercise', number: node.enumerator ?? '' });
    } else if (node.html_id && node.type !== 'crossReference' && node.type !== 'captionNumber') {
      if (!targets.has(label)) targets.set(label, { page, word: '', number: '' });
    }
  }
  return problems;
}

const WRITTEN = /^(figure|table|widget|equation|exercise)s?\s*\(?([\d.]+)\)?$/i;

/** What is wrong with a reference, if anything: no words, or a number that is not the target's. */
export function checkReference(node: Node, targets: Targets, file: string): Problem | undefined {
  const target = targets.get(node.identifier ?? '');
  const words = text(node).trim();
  const at = { file, line: line(node) };
  const name = node.label ?? node.identifier ?? '';
  if (!target)
    return {
      ...at,
      what: `nothing in the book is labelled "${name}"`,
      remedy: 'correct the label, or give it to the cell, table or equation that is meant',
    };
  if (!target.word) return undefined;
  const right = target.word === 'Equation' ? `equation (${target.number})` : `${target.word} ${target.number}`;
  const written = WRITTEN.exec(words);
  const empty = node.template !== undefined && (words === 'Notebook-code' || !words);
  if (empty)
    return {
      ...at,
      what: `the reference to "${name}" has no words of its own, so Jupyter shows its label`,
      remedy: `write [${right}](#${name})`,
    };
  if (written && (written[1]!.toLowerCase() !== target.word.toLowerCase() || written[2] !== target.number)) {
    return { ...at, what: `"${words}" refers to "${name}", which is ${right}`, remedy: `write [${right}](#${name})` };
  }
  return undefined;
}
