// What the run of a page left behind: the executed notebook that build.py writes, cell by cell.
import fs from 'node:fs';
import type { Node } from './tree.ts';

type Text = string | string[];
export interface Output {
  output_type: 'stream' | 'display_data' | 'execute_result' | 'error';
  name?: string;
  text?: Text;
  data?: Record<string, Text>;
  metadata?: Record<string, Record<string, unknown>>;
  ename?: string;
  evalue?: string;
}

export interface Run {
  source: string;
  tags: string[];
  outputs: Output[];
  seconds?: number;
  /** Line of the cell's first code line in the page. */
  line?: number;
}

export interface PageRun {
  runs: Run[];
  machine: string;
  seconds: number;
  cpu: string;
  versions: Record<string, string>;
}

export const joined = (t: Text | undefined): string => (Array.isArray(t) ? t.join('') : (t ?? ''));

interface Notebook {
  cells: {
    cell_type: string;
    source: Text;
    outputs?: Output[];
    metadata: { tags?: string[]; book?: { seconds?: number; line?: number } };
  }[];
  metadata: { book?: { machine?: string; seconds?: number; cpu?: string; versions?: Record<string, string> } };
}

/** Reads an executed notebook; a page that was not run has its code and no outputs. */
export function readRun(path: string): PageRun | undefined {
  if (!fs.existsSync(path)) return undefined;
  const notebook = JSON.parse(fs.readFileSync(path, 'utf8')) as Notebook;
  const runs = notebook.cells
    .filter((cell) => cell.cell_type === 'code')
    .map((cell) => ({
      source: joined(cell.source),
      tags: cell.metadata.tags ?? [],
      outputs: cell.outputs ?? [],
      seconds: cell.metadata.book?.seconds,
      line: cell.metadata.book?.line,
    }));
  const { machine = '', seconds = 0, cpu = '', versions = {} } = notebook.metadata.book ?? {};
  return { runs, machine, seconds, cpu, versions };
}

/** A code cell of the page: MyST's block with the run that belongs to it. */
export interface Cell extends Node {
  type: 'cell';
  code: string;
  language: string;
  run?: Run;
  shown: 'show' | 'hide' | 'remove';
  input: 'show' | 'hide' | 'remove';
  output: 'show' | 'hide' | 'remove';
}

type Shown = Cell['shown'];
const shown = (v: unknown): Shown => (v === 'hide' || v === 'remove' ? v : 'show');

/** Turns MyST's `notebook-code` block into a cell, with the n-th run of the page if it is a run of this code. */
export function toCell(block: Node, run: Run | undefined): Cell {
  const code = block.children?.find((c) => c.type === 'code');
  const outputs = block.children?.find((c) => c.type === 'outputs');
  return {
    type: 'cell',
    label: block.label,
    identifier: block.identifier,
    html_id: block.html_id,
    code: code?.value ?? '',
    language: String(code?.lang ?? 'python'),
    run: run?.source.trim() === (code?.value ?? '').trim() ? run : undefined,
    shown: shown(block.visibility),
    input: shown(code?.visibility),
    output: shown(outputs?.visibility),
  };
}

export const isCell = (node: Node): node is Cell => node.type === 'cell';
