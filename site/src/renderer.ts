// What a function that turns a kind of node into HTML is given: the page it is on, and how the nodes inside it are turned.
import type { Book, Page } from './book.ts';
import type { Numbered } from './figures.ts';
import type { Node, Problem } from './tree.ts';

export interface Assets {
  store(name: string, base64: string): string;
}

export interface Renderer {
  book: Book;
  page: Page;
  one(node: Node): string;
  all(nodes: Node[] | undefined): string;
  problem(problem: Problem): void;
  numbered(node: Node): Numbered | undefined;
}

export type Handlers = Record<string, (node: Node, r: Renderer) => string>;
