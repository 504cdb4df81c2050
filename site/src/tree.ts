// MyST's syntax tree, as far as the book reads it: small helpers, no HTML.

export interface Node {
  type: string;
  children?: Node[];
  /** What the template folds under a node: the run of a prediction, the solution of an exercise. */
  fold?: Node[];
  value?: string;
  class?: string;
  kind?: string;
  label?: string;
  identifier?: string;
  html_id?: string;
  enumerator?: string;
  url?: string;
  visibility?: string;
  position?: { start: { line: number } };
  [key: string]: unknown;
}

/** Something that must not reach a reader: the build prints it and fails. */
export interface Problem {
  file: string;
  line?: number;
  what: string;
  remedy: string;
}

export const text = (node: Node): string =>
  node.type === 'comment' ? '' : (node.value ?? (node.children ?? []).map(text).join(''));

export const hasClass = (node: Node, name: string): boolean =>
  typeof node.class === 'string' && node.class.split(/\s+/).includes(name);

/** Every node below `node`, itself first, in the order of the text. */
export function* walk(node: Node): Generator<Node> {
  yield node;
  for (const child of [...(node.children ?? []), ...(node.fold ?? [])]) yield* walk(child);
}

export const find = (node: Node, test: (n: Node) => boolean): Node | undefined => {
  for (const n of walk(node)) if (test(n)) return n;
  return undefined;
};

export const line = (node: Node): number | undefined => [...walk(node)].find((n) => n.position)?.position?.start.line;
