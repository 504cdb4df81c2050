// The book as MyST left it in _build/site, read into plain values: pages in the order of the contents, the parts, who is labelled what.
import fs from 'node:fs';
import path from 'node:path';
import { type Meaning, readMeaning } from './meaning.ts';
import { type Macros, readMacros } from './math.ts';
import { flatten, group } from './postures.ts';
import { type PageRun, readRun, toCell } from './runs.ts';
import { collectTargets, type Targets } from './targets.ts';
import { find, line, type Node, type Problem, text, walk } from './tree.ts';

export interface Reference {
  label: string;
  html: string;
  doi?: string;
  url?: string;
}

export interface Page {
  /** Where the page was written, from the project's folder: lessons/01-round.md. */
  file: string;
  /** The file's name without extension; also the name of the HTML and of the notebook. */
  name: string;
  slug: string;
  href: string;
  title: string;
  description: string;
  minutes?: number;
  meaning: Meaning;
  macros: Macros;
  nodes: Node[];
  notes: Map<string, Node>;
  references: Reference[];
  run?: PageRun;
  github?: string;
  part?: Part;
}

export interface Part {
  number: number;
  title: string;
  question: Node[];
  page?: Page;
}

export interface Book {
  title: string;
  pages: Page[];
  parts: Part[];
  targets: Targets;
  problems: Problem[];
}

interface Content {
  slug: string;
  location: string;
  frontmatter: { title?: string; description?: string; options?: { minutes?: number }; math?: unknown; github?: string };
  mdast: Node;
  references?: { cite?: { order?: string[]; data?: Record<string, Reference> } };
}

const readJson = <T>(file: string): T => JSON.parse(fs.readFileSync(file, 'utf8')) as T;

export interface Folders {
  content: string;
  executed: string;
}

function readPage({ content, executed }: Folders, slug: string, problems: Problem[]): Page {
  const json = readJson<Content>(path.join(content, 'content', `${slug}.json`));
  const file = json.location.replace(/^\//, '');
  const name = path.basename(file).replace(/\.[^.]+$/, '');
  const run = readRun(path.join(executed, `${name}.ipynb`));
  const nodes = group(flatten(json.mdast, (block, i) => toCell(block, run?.runs[i])));
  let meaning: Meaning = new Map();
  try {
    meaning = readMeaning(json.frontmatter.options);
  } catch (error) {
    problems.push({ file, line: 1, what: (error as Error).message, remedy: 'correct options.meaning in the header' });
  }
  const { order = [], data = {} } = json.references?.cite ?? {};
  return {
    file,
    name,
    slug,
    run,
    nodes,
    meaning,
    href: `${slug === 'index' ? 'index' : name}.html`,
    title: json.frontmatter.title ?? name,
    description: json.frontmatter.description ?? '',
    minutes: json.frontmatter.options?.minutes,
    macros: readMacros(json.frontmatter.math),
    notes: new Map([...walk(json.mdast)].filter((n) => n.type === 'footnoteDefinition').map((n) => [n.identifier ?? '', n])),
    references: order.map((key) => ({ ...data[key]!, label: key })),
    github: json.frontmatter.github,
  };
}

/** The list after <!-- parts --> on the first page: `1. **[Title](file.md)** question`. */
function readParts(index: Page, pages: Page[], problems: Problem[]): Part[] {
  const list = index.nodes.find((n) => n.type === 'partsMap');
  const parts = (list?.children ?? []).map((item, i): Part => {
    const strong = find(item, (n) => n.type === 'strong');
    const link = find(item, (n) => n.type === 'link');
    const page = pages.find((p) => link?.url === `/${p.slug}`);
    const question = (item.children ?? [])
      .flatMap((c) => (c.type === 'paragraph' ? (c.children ?? []) : [c]))
      .filter((c) => c !== strong);
    if (!strong)
      problems.push({
        file: index.file,
        line: line(item),
        what: `part ${i + 1} in the list of parts has no title`,
        remedy: 'write **Title** or **[Title](page.md)**, then its question',
      });
    const part = { number: i + 1, title: strong ? text(strong) : '', question, page };
    if (page) page.part = part;
    return part;
  });
  for (const page of pages) {
    if (parts.length && page !== index && /^\d+-/.test(page.name) && !page.part) {
      problems.push({
        file: page.file,
        what: 'the page is in the contents and not in the list of parts',
        remedy: `link to it in the list after <!-- parts --> in ${index.file}`,
      });
    }
  }
  return parts;
}

export function readBook(folders: Folders): Book {
  const config = readJson<{ title?: string; projects: { title?: string; index: string; pages: { slug?: string }[] }[] }>(
    path.join(folders.content, 'config.json'),
  );
  const project = config.projects[0]!;
  const problems: Problem[] = [];
  const slugs = [project.index, ...project.pages.map((p) => p.slug).filter((s) => s !== undefined)];
  const pages = slugs.map((slug) => readPage(folders, slug, problems));
  const targets: Targets = new Map();
  for (const page of pages) problems.push(...collectTargets(page.nodes, page.name, page.file, targets));
  const parts = readParts(pages[0]!, pages, problems);
  return { title: config.title ?? project.title ?? 'The book', pages, parts, targets, problems };
}
